"""Panics of a real library."""

from __future__ import annotations

import pytest

from server.program.rust_panics import RustPanic, is_panic, panics_as_errors
from tests.panics import panic


def test_a_panic_becomes_an_exception_and_nothing_else_does() -> None:
    with pytest.raises(RustPanic, match="index out of bounds"), panics_as_errors():
        panic()
    with pytest.raises(KeyboardInterrupt), panics_as_errors():
        raise KeyboardInterrupt


def test_a_panic_is_no_exception_by_itself() -> None:
    with pytest.raises(BaseException, match="index out of bounds") as caught:
        panic()
    assert is_panic(caught.value)
    assert not isinstance(caught.value, Exception)
