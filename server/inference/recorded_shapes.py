"""Which shapes of packed micro-batches are recorded as CUDA graphs, and which of them one fits.

Pure arithmetic: knows neither torch nor a device.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

# The attention kernel's grid is (longest / 128) x slots x heads, and each of its blocks that finds
# no sequence costs 1.3 to 1.6 ns (H200, 2026-11-27). A mixed micro-batch of 16,384 tokens took
# 3.59 ms with 4,096 slots and 512 as the longest, and 2.03 ms with 512 slots and 256.
LONGEST = (128, 256, 512)  # sequences of more tokens are not recorded
TOKENS_A_SLOT = 4  # of shapes for short sequences
TOKENS_A_WIDE_SLOT = 32  # of shapes for longer ones
# Below so many tokens the empty blocks cost less than the time to record shapes of their own.
WIDE_FROM_TOKENS = 1_024
MIN_SLOTS = 8


class Shape(NamedTuple):
    """A micro-batch that fits has at most so many tokens, sequences, and tokens a sequence."""

    tokens: int
    slots: int
    longest: int


def recorded_sizes(most: int) -> list[int]:
    """Token counts of recorded shapes, ascending: four an octave, the last one `most`."""
    sizes = [16, 32, 64, 96, 128, 192]
    octave = 256
    while octave < most:
        sizes += [octave * quarter // 4 for quarter in (4, 5, 6, 7)]
        octave *= 2
    return [*(size for size in sizes if size < most), most]


class RecordedShapes:
    """The shapes for micro-batches of up to `max_batch_tokens`.

    Args:
        max_input_tokens: no sequence has more.
    """

    def __init__(self, max_batch_tokens: int, max_input_tokens: int) -> None:
        self._sizes = recorded_sizes(max_batch_tokens)
        longest = next((bound for bound in LONGEST if bound >= max_input_tokens), LONGEST[-1])
        self._all = [bound for bound in LONGEST if bound <= longest]
        # Many short sequences: seldom is one of them of middle length and none longer.
        self._outer = [bound for bound in self._all if bound in (LONGEST[0], longest)]

    def __iter__(self) -> Iterator[Shape]:
        """All of them, those of the most tokens first."""
        for tokens in reversed(self._sizes):
            for slots, bounds in reversed(self._forms(tokens)):
                for longest in bounds:
                    yield Shape(tokens, slots, longest)

    def fitting(self, sequences: int, tokens: int, longest: int) -> Shape | None:
        """The shape that computes such a micro-batch with the least waste; None if none holds it."""
        least = max(tokens, TOKENS_A_SLOT * (sequences - MIN_SLOTS))
        for size in self._sizes[bisect_left(self._sizes, least) :]:
            for slots, bounds in self._forms(size):
                if slots < sequences:
                    continue
                for bound in bounds:
                    if bound >= longest:
                        return Shape(size, slots, bound)
        return None

    def _forms(self, tokens: int) -> list[tuple[int, list[int]]]:
        """Slots, ascending, and the bounds of the longest sequence that go with them."""
        short = (max(MIN_SLOTS, tokens // TOKENS_A_SLOT), self._outer)
        if tokens < WIDE_FROM_TOKENS:
            return [short]
        return [(tokens // TOKENS_A_WIDE_SLOT, self._all), short]
