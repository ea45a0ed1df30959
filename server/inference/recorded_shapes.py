"""Which shapes of packed micro-batches are recorded as CUDA graphs, and which of them one fits.

Pure arithmetic: knows neither torch nor a device. Also which packings compilers and graphs are
tried with.
"""

from __future__ import annotations

import random
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


def random_lengths(shape: Shape, max_input_tokens: int, chance: random.Random) -> list[int]:
    """Lengths of sequences that fit the shape: few or many, and seldom filling it."""
    longest = chance.randint(1, min(shape.longest, max_input_tokens, shape.tokens))
    lengths: list[int] = []
    left = chance.randint(1, shape.tokens)
    while left and len(lengths) < shape.slots:
        lengths.append(chance.randint(1, min(longest, left)))
        left -= lengths[-1]
    return lengths


def packings_to_warm(max_tokens: int, max_input_tokens: int) -> list[list[int]]:
    """Lengths of micro-batches in which everything occurs that a compiler may take for a rule.

    A number that is 1, numbers that are equal (tokens, texts, the longest text), the least and the
    most of each.
    """
    longest = min(max_input_tokens, max_tokens)
    middle = (longest + 1) // 2
    many = min(max_tokens, 20)
    found = [
        [middle, 3, 1, 2],  # nothing is equal
        [longest],
        [middle],
        [1],
        [2],
        [1, 1],
        [2, 1],
        [middle, middle],
        [1] * many,
        [1] * (many - 1) + [2],
        [longest] * (max_tokens // longest),
        [longest, *[1] * (max_tokens - longest)][:longest],  # as many bounds as the longest has
    ]
    fitting = [[min(length, longest) for length in lengths] for lengths in found]
    return [lengths for lengths in fitting if lengths and sum(lengths) <= max_tokens]


class RecordedShapes:
    """The shapes for micro-batches of up to `max_batch_tokens`.

    Args:
        max_input_tokens: no sequence has more.
    """

    def __init__(self, max_batch_tokens: int, max_input_tokens: int) -> None:
        self.refused: frozenset[Shape] = frozenset()  # that fit nothing
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
                        shape = Shape(size, slots, bound)
                        if shape not in self.refused:
                            return shape
        return None

    def _forms(self, tokens: int) -> list[tuple[int, list[int]]]:
        """Slots, ascending, and the bounds of the longest sequence that go with them."""
        short = (max(MIN_SLOTS, tokens // TOKENS_A_SLOT), self._outer)
        if tokens < WIDE_FROM_TOKENS:
            return [short]
        return [(tokens // TOKENS_A_WIDE_SLOT, self._all), short]
