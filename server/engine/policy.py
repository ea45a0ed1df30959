"""Which waiting sequences form the next micro-batch: a pure function of their lengths.

Knows no threads, no clock, no futures.
"""

from __future__ import annotations

from typing import Protocol

# Share of a micro-batch that may be padding once it is a quarter full. Below that, a fuller
# micro-batch is worth more than the padding it costs.
MAX_PADDING = 0.125
MIN_FILL = 0.25


class Lengths(Protocol):
    """Tokens of each waiting sequence, ascending; `list[int]` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> int: ...


def select(
    lengths: Lengths, head: int, max_batch_tokens: int, *, packed: bool = False
) -> tuple[int, int]:
    """The run of sequences to compute together with the most urgent one.

    Args:
        lengths: tokens of each waiting sequence, ascending.
        head: index of the most urgent sequence; it is always part of the run.
        max_batch_tokens: budget, counted as sequences times the longest of them.
        packed: nothing is padded; the budget counts tokens.

    Returns:
        (start, stop): `lengths[start:stop]` holds `head` and neighbours of similar length (of the
        same, where a text's padding is its own: no others are given). Its size is within the
        budget, unless it is `head` alone.
    """
    start, stop = head, head + 1
    total = longest = lengths[head]
    left = right = True
    while left or right:
        left = left and start > 0
        right = right and stop < len(lengths)
        if right and (
            not left or lengths[stop] - lengths[head] <= lengths[head] - lengths[start - 1]
        ):
            grown = lengths[stop]  # also the new longest
            padded = total + grown if packed else (stop + 1 - start) * grown
            if _fits(padded, total + grown, max_batch_tokens):
                stop += 1
                total += grown
                longest = grown
                left = True  # with a fuller micro-batch its padding may be little enough
            else:
                right = False
        elif left:
            grown = lengths[start - 1]
            padded = total + grown if packed else (stop - start + 1) * longest
            if _fits(padded, total + grown, max_batch_tokens):
                start -= 1
                total += grown
                right = True
            else:
                left = False
    return start, stop


def _fits(padded: int, total: int, max_batch_tokens: int) -> bool:
    if padded > max_batch_tokens:
        return False
    return padded <= MIN_FILL * max_batch_tokens or padded - total <= MAX_PADDING * padded
