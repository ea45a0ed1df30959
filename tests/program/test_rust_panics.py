"""Panics of a real library."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Precompiled

from server.program.rust_panics import RustPanic, is_panic, panics_as_errors


def panic() -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    tokenizer.normalizer = Precompiled(b"\4\0\0\0\0\0\0\0")
    tokenizer.encode("a")


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
