"""What a large body would become is told before it does."""

from __future__ import annotations

import json
import math
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.api.json_values import PIECE_BYTES
from server.api.outline import MAX_INPUTS, Outline
from server.api.schemas import EmbeddingRequest
from server.errors import ApiError, InvalidRequest, TooManyTokens

NAMES = tuple(EmbeddingRequest.model_fields)
MOST_TOKENS = 3000


def outline(body: bytes) -> Outline:
    return Outline.of(bytearray(body), NAMES, max_request_tokens=MOST_TOKENS)


def complaint(body: bytes) -> str:
    with pytest.raises(ApiError) as caught:
        outline(body)
    return caught.value.message


def held_bytes(value: object) -> int:
    """What Python says that an input takes."""
    size = sys.getsizeof(value)
    return size + (sum(held_bytes(one) + 8 for one in value) if isinstance(value, list) else 0)


texts = st.text(st.characters(codec="utf-8"), max_size=40)
ids = st.lists(st.integers(0, 2**40), max_size=20)


@given(
    fields=st.fixed_dictionaries(
        {"input": texts | st.lists(texts) | ids | st.lists(ids)},
        optional={
            "model": texts,
            "dimensions": st.integers(-(2**63), 2**64 - 1),
            "user": st.none() | texts,
        },
    ),
    escaped=st.booleans(),
    indented=st.booleans(),
)
def test_a_body_is_read_as_it_is_written_and_takes_no_more_than_was_told(
    fields: dict[str, Any], escaped: bool, indented: bool
) -> None:
    body = json.dumps(fields, ensure_ascii=escaped, indent=1 if indented else None).encode()
    found = outline(body)
    assert found.read() == fields
    # An empty list is known by its place alone.
    assert held_bytes(fields["input"]) <= found.object_bytes + 160 * (1 + body.count(b"["))


# None of them becomes infinite by one digit more, which only a reader of the value refuses.
numbers = st.sampled_from([0.5, -0.0, 1e5, math.inf, math.nan])
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


blanks = st.text(" \t\r\n", max_size=2)


@st.composite
def spelled(draw: st.DrawFn, value: object) -> str:
    """JSON for this value, with blanks and escapes wherever there may be some."""
    if isinstance(value, list):
        found = "[" + ",".join([draw(spelled(one)) for one in value]) + "]"
    elif isinstance(value, dict):
        pairs = [f"{draw(spelled(name))}:{draw(spelled(one))}" for name, one in value.items()]
        found = "{" + ",".join(pairs) + "}"
    elif isinstance(value, str) and value and draw(st.booleans()):
        found = '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 2**16 else c for c in value) + '"'
    else:
        found = json.dumps(value, ensure_ascii=draw(st.booleans()))
    return draw(blanks) + found + draw(blanks)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Bodies of which many are wrong: as JSON, as text, by their fields, or by these values."""
    fields = st.sampled_from([*NAMES, "x", "Input", ""])
    pairs = [("model", "m"), ("input", draw(texts | st.lists(texts) | ids | st.lists(ids)))]
    pairs += draw(st.lists(st.tuples(fields, anything), max_size=2))
    written = [
        f"{draw(spelled(name))}:{draw(spelled(value))}"
        for name, value in draw(st.permutations(pairs))
    ]
    body = ("{" + ",".join(written) + "}").encode()
    body = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + body
    if draw(st.booleans()):
        begin, lost = draw(st.integers(0, len(body))), draw(st.integers(0, 2))
        put = draw(st.sampled_from([b"", b'"', b"\\", b",", b"[", b"}", b"\xff", b"\0", b"0"]))
        body = body[:begin] + put + body[begin + lost :]
    return body


@given(body=bodies() | spelled({}).map(str.encode) | anything.flatmap(spelled).map(str.encode))
@example(body=b'{"x":1')
@example(body=b"[1")
@example(body=b'{"model":"m","\\u0069nput":"a","input":"b"}')
def test_a_body_means_the_same_whether_it_is_looked_at_first_or_not(body: bytes) -> None:
    def read_small() -> object:
        return EmbeddingRequest.read(body)

    def read_large() -> object:
        found = EmbeddingRequest.outline(body, max_request_tokens=MOST_TOKENS)
        return EmbeddingRequest.of(found.read())

    assert _result(read_small) == _result(read_large)


def _result(read: Callable[[], object]) -> object:
    try:
        return read()
    except ApiError as error:
        return type(error), error.param


def test_many_blanks_before_ids_change_nothing() -> None:
    ids = list(range(MOST_TOKENS))
    written = orjson.dumps({"input": ids}).replace(b"[", b"[" + b" \n" * PIECE_BYTES)
    assert outline(written).read() == {"input": ids}


def filled(unit: bytes, begin: bytes = b'{"model":"m","input":[', end: bytes = b"]}") -> bytes:
    return begin + b",".join([unit] * (4_000_000 // (len(unit) + 1))) + end


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (filled(b"[]"), "input holds more than the 2048 inputs allowed"),
        (filled(b"{}"), "input holds more than the 2048 inputs allowed"),
        (filled(b'"ab"'), "input holds more than the 2048 inputs allowed"),
        (filled(b"1"), "more than 3000 tokens"),
        (filled(b"1", begin=b'{"input":[["a"],["b"],['), "input[0] must be a list of token ids"),
        (filled(b"1", begin=b'{"input":["a",[', end=b"]]}"), "reached at input[1]"),
        (filled(b"[]", begin=b'{"input":["a",[', end=b"]]}"), "input[1] must be a list of token"),
        (filled(b"[]", begin=b'{"input":["a",{"b":[', end=b"]}]}"), "input[1] must be a string or"),
        (filled(b"[]", begin=b'{"input":{"a":[', end=b"]}}"), "not an object"),
        (filled(b"[]", begin=b'{"model":['), "model must have at most 65536 bytes"),
        (filled(b"[]", begin=b'{"x":['), "Unrecognized request argument supplied: x"),
        (filled(b'"":1', begin=b"{", end=b"}"), "Unrecognized request argument supplied: "),
        (filled(b"[]", begin=b"[", end=b"]"), "must be a JSON object, not a list"),
        (filled(b"[]", end=b"]"), "input holds more than the 2048 inputs allowed"),
        (filled(b'"user":"a"', begin=b"{", end=b"}"), "more than 77536 values or 67584 strings"),
        (b"[" * 1_000_000, "not valid JSON: it is nested too deeply"),
        (b'{"input":' + b"[" * 1_000_000, "not valid JSON: it is nested too deeply"),
    ],
)
def test_what_would_become_large_is_refused_before_it_does(body: bytes, told: str) -> None:
    tracemalloc.start()
    try:
        message = complaint(body)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert told in message
    assert (
        peak_bytes < len(body) + 5_000_000
    )  # the copy of the body, made above, and a piece in parts


def test_the_first_of_two_values_is_never_made() -> None:
    lists = b"[]," * MAX_INPUTS
    found = outline(b'{"model":"m","input":[%s[]],"input":"x"}' % lists)
    assert found.read() == {"model": "m", "input": "x"}
    assert found.object_bytes < 100


def test_as_many_inputs_as_are_allowed_are() -> None:
    values = ["a"] * MAX_INPUTS
    assert outline(orjson.dumps({"input": values})).read() == {"input": values}
    assert "more than the 2048" in complaint(orjson.dumps({"input": [*values, "a"]}))


def test_ids_that_may_be_cut_away_are_let_through() -> None:
    ids = list(range(4 * MOST_TOKENS))
    assert outline(orjson.dumps({"input": ids})).read() == {"input": ids}
    with pytest.raises(TooManyTokens):
        outline(orjson.dumps({"input": [*ids, 1]}))
    with pytest.raises(TooManyTokens, match=r"input\[2\]"):
        outline(orjson.dumps({"input": [ids[: 2 * MOST_TOKENS], ids[: 2 * MOST_TOKENS], [1]]}))


@pytest.mark.parametrize("text", [b"\\ud800", b"\\udc00", b"\\ud800\\u0041"])
def test_half_a_surrogate_pair_is_no_text(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        outline(b'{"input": "%s"}' % text).read()
