from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.ratio import Ratio


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.integers(300, 500))
def test_a_ratio_follows_what_it_observes(guess: float, truth: float, count: int) -> None:
    ratio = Ratio(guess, weight=1)
    assert ratio.value == pytest.approx(guess)
    values = []
    for _ in range(count):
        ratio.observe(truth * 0.1, 0.1)
        values.append(ratio.value)
    assert sorted(values, reverse=guess > truth) == pytest.approx(values)
    assert min(guess, truth) * 0.999 <= values[-1] <= max(guess, truth) * 1.001
    assert abs(values[-1] - truth) <= 0.01 * abs(guess - truth) + 1e-6 * truth
