"""What a config says is taken, and what the formulas do not know is refused by its name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from server.errors import UnknownArithmetic
from server.importing.witness import formulas
from server.importing.witness.settings import activation, count, flag, number, require


def test_what_is_said_is_taken() -> None:
    assert count({"layers": 3}, "layers") == 3
    assert number({"epsilon": 1e-5}, "epsilon", 1e-12) == 1e-5
    assert number({}, "epsilon", 1e-12) == 1e-12
    assert activation({"act": "gelu_new"}, "act", "gelu") is formulas.gelu_tanh
    assert activation({}, "act", "gelu") is formulas.gelu
    assert count({"padding": 0}, "padding", least=0) == 0
    assert flag({"bias": None}, "bias", default=True)
    assert not flag({"bias": False}, "bias", default=True)
    require({}, "kind", "absolute")
    require({"kind": "absolute"}, "kind", "absolute")


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, True, "12"])
def test_a_size_that_is_none_is_refused(value: Any) -> None:
    if value != 0 or value is False:
        with pytest.raises(UnknownArithmetic, match=r"padding is .*, not a whole number"):
            count({"padding": value}, "padding", least=0)
    with pytest.raises(UnknownArithmetic, match=r"layers is .*, not a positive whole number"):
        count({"layers": value}, "layers")
    with pytest.raises(UnknownArithmetic, match="epsilon is 'x', not a positive number"):
        number({"epsilon": "x"}, "epsilon", 1)
    with pytest.raises(UnknownArithmetic, match="epsilon is None, not a positive number"):
        number({}, "epsilon")
    for wrong in (0, -1e-5, math.nan, math.inf, 10**400):
        with pytest.raises(UnknownArithmetic, match="not a positive number"):
            number({"epsilon": wrong}, "epsilon")
    with pytest.raises(UnknownArithmetic, match="bias is 'no', neither true nor false"):
        flag({"bias": "no"}, "bias", default=False)


def test_another_arithmetic_is_refused_by_name() -> None:
    with pytest.raises(
        UnknownArithmetic, match=r"^config.json: kind is 'alibi'; the witness knows"
    ):
        require({"kind": "alibi"}, "kind", "absolute")
    with pytest.raises(UnknownArithmetic, match="act is 'gelu_10'; the witness knows only gelu, "):
        activation({"act": "gelu_10"}, "act", "gelu")
