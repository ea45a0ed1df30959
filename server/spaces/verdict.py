"""What two sides' vectors have to do with each other, as a verdict with its floors.

Pure; any thread may call.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from server.inference.least_cosines import SPACE

if TYPE_CHECKING:  # which brings numpy
    from server.inference.agreement import Agreement

# Least mean share of ten nearest neighbours that both sides have. int8 keeps 0.967 of float32's and
# more, by any recipe (all-MiniLM-L6-v2), random errors that leave a cosine of 0.995 keep 0.953, and
# a vector cut to two thirds of its size 0.83 (lines of this project's documents).
RANKING: Final = 0.95


class Verdict(StrEnum):
    """From the strongest to the weakest; each one holds what the next one says."""

    SAME_VECTORS = "same-vectors"  # bit for bit
    SAME_SPACE = "same-space"  # they may lie in one index
    SAME_RANKING = "same-ranking"  # two indexes find the same, and must not be mixed
    ANOTHER_SPACE = "another-space"

    def is_at_least(self, other: Verdict) -> bool:
        """Whether it says as much as another one, or more."""
        order = list(Verdict)
        return order.index(self) <= order.index(other)

    @property
    def words(self) -> str:
        """As people read it."""
        return self.value.replace("-", " ")


def judge(agreement: Agreement | None, kept: float) -> Verdict:
    """The strongest verdict that holds.

    Near cosines alone are no proof of one space: where all of a model's vectors lie close together,
    those of any two texts are near. So the neighbours count for every verdict but the first.

    Args:
        agreement: of the vectors; None: the two sizes differ, so that there is none.
        kept: mean share (0 to 1) of nearest neighbours that both sides have.
    """
    if agreement is not None and agreement.bit_equal:
        return Verdict.SAME_VECTORS
    if not kept >= RANKING:
        return Verdict.ANOTHER_SPACE
    if agreement is not None and agreement.min_cosine >= SPACE:
        return Verdict.SAME_SPACE
    return Verdict.SAME_RANKING
