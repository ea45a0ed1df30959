from __future__ import annotations

import math

import pytest

from server.inference.agreement import Agreement
from server.spaces.verdict import Verdict, judge


def agreement(min_cosine: float, *, bit_equal: bool = False) -> Agreement:
    return Agreement(100, min_cosine, max(min_cosine, 0.9999), 0, 0.1, bit_equal)


@pytest.mark.parametrize(
    ("found", "kept", "verdict"),
    [
        (agreement(1, bit_equal=True), 1.0, Verdict.SAME_VECTORS),
        (agreement(1), 1.0, Verdict.SAME_SPACE),
        (agreement(0.999), 0.95, Verdict.SAME_SPACE),
        (agreement(0.99899), 0.95, Verdict.SAME_RANKING),  # int8 beside float32
        (agreement(-0.2), 1.0, Verdict.SAME_RANKING),  # turned by a rotation
        (agreement(-0.2), 0.9499, Verdict.ANOTHER_SPACE),
        # All vectors of such a model lie close together: the cosines of any two texts are high.
        (agreement(0.99999), 0.2, Verdict.ANOTHER_SPACE),
        (agreement(math.nan), 1.0, Verdict.SAME_RANKING),
        (None, 0.97, Verdict.SAME_RANKING),
        (None, 0.5, Verdict.ANOTHER_SPACE),
        (agreement(1), math.nan, Verdict.ANOTHER_SPACE),
    ],
)
def test_the_verdict_is_the_strongest_that_holds(
    found: Agreement | None, kept: float, verdict: Verdict
) -> None:
    assert judge(found, kept) is verdict


def test_a_verdict_is_at_least_itself_and_all_weaker_ones() -> None:
    strongest_first = ["same-vectors", "same-space", "same-ranking", "another-space"]
    for place, one in enumerate(strongest_first):
        reached = [other for other in strongest_first if Verdict(one).is_at_least(Verdict(other))]
        assert reached == strongest_first[place:]
