"""The beginning of a JSON text that has too many values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.api import json_values
from server.api.json_values import PIECE_BYTES, beginning_of, pieces

MANY = 10**9
texts = st.text(st.sampled_from(["a", ",", "[", "{", '"', "\\", "é", "😀"]), max_size=9)
values = st.recursive(
    st.integers(0, 99) | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=30,
)


def num_values(value: Any) -> int:
    """Commas and opening brackets, by what was parsed."""
    if not isinstance(value, list | dict):
        return 0
    inner = value if isinstance(value, list) else value.values()
    return 1 + max(len(value) - 1, 0) + sum(map(num_values, inner))


def num_strings(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(num_strings, value.values()))
    return sum(map(num_strings, value)) if isinstance(value, list) else isinstance(value, str)


def begins(whole: Any, beginning: Any) -> bool:
    """Whether both say the same as far as the beginning goes; what is cut off is a 0 there."""
    if beginning == whole or beginning == 0:
        return True
    if isinstance(whole, list) and isinstance(beginning, list):
        pairs: list[tuple[Any, Any]] = list(zip(whole, beginning, strict=False))
    elif isinstance(whole, dict) and isinstance(beginning, dict):
        assert list(whole)[: len(beginning)] == list(beginning)
        pairs = [(whole[name], value) for name, value in beginning.items()]
    else:
        return False
    return len(beginning) <= len(whole) and all(begins(*pair) for pair in pairs)


@given(value=values, ascii_only=st.booleans(), front=st.integers(0, 60))
@example(value=["\\", [1, 2]], ascii_only=True, front=0)
@example(value={"a": {"b": [1]}}, ascii_only=True, front=0)
@example(value=['"', {'",': '\\"'}], ascii_only=True, front=9)
def test_what_has_more_is_cut_to_what_it_begins_with(
    value: Any, ascii_only: bool, front: int
) -> None:
    # Pieces end in the midst of it: in strings, and between what is escaped and its backslash.
    blanks = " " * max(0, PIECE_BYTES - front)
    text = (blanks + json.dumps(value, ensure_ascii=ascii_only)).encode()
    marks, strings = num_values(value), num_strings(value)
    assert beginning_of(text, most_values=marks, most_strings=MANY) is None
    assert beginning_of(text, most_values=MANY, most_strings=strings) is None
    if marks:
        cut = beginning_of(text, most_values=marks - 1, most_strings=MANY)
        assert cut is not None
        assert begins(value, json.loads(cut))


def test_strings_are_counted_too() -> None:
    text = json.dumps([["a"] * 99, 1]).encode()
    assert beginning_of(text, most_values=MANY, most_strings=99) is None
    cut = beginning_of(text, most_values=MANY, most_strings=98)
    assert cut is not None
    assert json.loads(cut) == [["a"] * 99]


@pytest.mark.parametrize("unit", ["]", "\\", '\\"'])
def test_what_is_no_json_is_left_to_the_parser(unit: str) -> None:
    assert beginning_of(unit.encode() * 200_000, most_values=5, most_strings=5) is None


@pytest.mark.parametrize(
    "text",
    [*(unit * 200_000 for unit in ('"', '""', '"a":', '"a"')), "[" * 100_000 + '"' + "," * 300_000],
)
def test_what_no_parser_reads_on_is_left_to_it_at_once(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[bytes] = []

    def watched(text: bytes) -> Iterator[bytes]:
        for piece in pieces(text):
            looked_at.append(piece)
            yield piece

    monkeypatch.setattr(json_values, "pieces", watched)
    assert beginning_of(text.encode(), most_values=200_000, most_strings=5) is None
    assert len(looked_at) == 1
