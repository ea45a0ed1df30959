"""What a large body would become, found before an object is made of it.

Small JSON values take up to forty times their bytes as objects: a body of 32 MiB can become more
than a gigabyte. So a body is looked at first, and only what may stand there is made: its values are
counted, and msgspec walks over those that are wanted raw and makes nothing of them. Pure; any thread
may call.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import orjson
from msgspec import Raw

from server.api.json_values import PIECE_BYTES, beginning_of, pieces
from server.engine.request_tokenizer import DECODED_BEFORE_CUT
from server.errors import InvalidRequest, TooManyTokens, UnrecognizedArgument

MAX_INPUTS = 2048
MAX_FIELD_BYTES = 64 * 1024  # of any field but `input`
_BLANKS = b" \t\r\n"  # of JSON
_ID_BYTES = 40  # of a token id: a Python int and its place in a list
_TEXT_BYTES = 80  # of an empty text and its place in a list
_MALFORMED = re.compile(r"JSON is malformed: (?P<what>.*) \(byte (?P<byte>\d+)\)")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_OTHER_SHAPE = re.compile(r"Expected `object`, got `(?P<kind>\w+)`")
_JSON_NAMES = {
    "array": "a list", "str": "a string", "int": "an integer", "float": "a number",
    "bool": "a boolean", "null": "null",
}  # fmt: skip
_ANYTHING = msgspec.json.Decoder(Raw)


@dataclass(frozen=True, slots=True)
class Outline:
    """A body's fields, not yet read; valid as long as the body does not change."""

    fields: dict[str, Raw]
    object_bytes: int  # what the inputs take as objects, at most

    @classmethod
    def of(
        cls, body: bytes | bytearray, known: Iterable[str], *, max_request_tokens: int
    ) -> Outline:
        """Look at a body that should be a JSON object.

        Args:
            known: the fields that there may be.
            max_request_tokens: how many tokens there may be in all inputs together.

        Raises:
            InvalidRequest: it is not JSON, or holds what cannot be right; names the field.
            TooManyTokens: more token ids than allowed.
        """
        check_utf8(body)
        # More than any field's values and strings may be; a shorter field is refused for them.
        most_values = DECODED_BEFORE_CUT * max_request_tokens + MAX_FIELD_BYTES
        most_strings = MAX_INPUTS + MAX_FIELD_BYTES
        beginning = beginning_of(body, most_values=most_values, most_strings=most_strings)
        if beginning is not None:
            cls._of(beginning, known, max_request_tokens)  # which nearly always tells what is wrong
            raise InvalidRequest(
                f"The request body holds more than {most_values} values or {most_strings} strings."
            )
        return cls._of(body, known, max_request_tokens)

    @classmethod
    def _of(cls, body: bytes | bytearray, known: Iterable[str], max_request_tokens: int) -> Outline:
        mark_bytes = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
        names, content = tuple(known), memoryview(body)[mark_bytes:]
        try:
            try:
                found = _decoder(names).decode(content)
            except msgspec.ValidationError as error:  # told if the rest is JSON, as of a small body
                _ANYTHING.decode(content)
                raise _of_another_shape(str(error)) from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise _not_json(error, mark_bytes) from None
        given = {name: getattr(found, name) for name in names}
        fields = {name: raw for name, raw in given.items() if memoryview(raw).nbytes}
        for name, raw in fields.items():
            if name != "input" and memoryview(raw).nbytes > MAX_FIELD_BYTES:
                raise InvalidRequest(
                    f"Invalid value for '{name}': {name} must have at most {MAX_FIELD_BYTES} bytes.",
                    param=name,
                )
        inputs = memoryview(fields["input"]) if "input" in fields else memoryview(b"null")
        return cls(fields, _input_bytes(inputs, max_request_tokens))

    def read(self) -> dict[str, Any]:
        """The fields as objects.

        Raises:
            InvalidRequest: a text is none, as half a surrogate pair.
        """
        try:
            return {name: orjson.loads(memoryview(raw)) for name, raw in self.fields.items()}
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"The request body is not valid JSON: {error.msg}.") from None


def check_utf8(body: bytes | bytearray) -> None:
    """Look for bytes that are no text; in pieces, since a text can take four times their memory.

    Raises:
        InvalidRequest: names the first.
    """
    position = 0
    while position < len(body):
        piece = body[position : position + PIECE_BYTES]
        is_last = position + PIECE_BYTES >= len(body)
        try:
            _, read_bytes = codecs.utf_8_decode(piece, "strict", is_last)
        except UnicodeDecodeError as error:
            position += error.start
            raise InvalidRequest(
                f"The request body is not valid UTF-8: byte {position} is 0x{body[position]:02x}."
            ) from None
        position += read_bytes


def wrong_input(name: str, rule: str) -> InvalidRequest:
    """What to say of an input that is not as it must be; `name` has its position."""
    return InvalidRequest(f"Invalid value for '{name}': {name} {rule}.", param="input")


@functools.cache
def _decoder(names: tuple[str, ...]) -> Any:
    """Reads an object of these fields and makes nothing of what they hold."""
    fields = [(name, Raw, Raw()) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("_Fields", fields, forbid_unknown_fields=True))


@functools.cache  # it takes a megabyte, and most servers never need it
def _elements() -> Any:
    """Reads an array of at most MAX_INPUTS values and makes none of them."""
    fields = [(f"element{index}", Raw, Raw()) for index in range(MAX_INPUTS)]
    kind = msgspec.defstruct("_Elements", fields, array_like=True, forbid_unknown_fields=True)
    return msgspec.json.Decoder(kind)


def _of_another_shape(told: str) -> InvalidRequest:
    if unknown := _UNKNOWN.search(told):
        return UnrecognizedArgument([unknown["name"]])
    shape = _OTHER_SHAPE.search(told)
    found = _JSON_NAMES.get(shape["kind"], "something else") if shape else "something else"
    return InvalidRequest(f"The request body must be a JSON object, not {found}.")


def _not_json(error: Exception, mark_bytes: int) -> InvalidRequest:
    if isinstance(error, RecursionError):
        return InvalidRequest("The request body is not valid JSON: it is nested too deeply.")
    malformed = _MALFORMED.search(str(error))
    what = "it is cut off, or holds half a surrogate pair"
    if malformed:
        what = f"{malformed['what']} at byte {mark_bytes + int(malformed['byte'])}"
    return InvalidRequest(f"The request body is not valid JSON: {what}.")


def _input_bytes(content: memoryview, max_request_tokens: int) -> int:
    """How many bytes `input` takes as objects, at most.

    Raises:
        InvalidRequest, TooManyTokens: it has more values or other ones than it may have.
    """
    kind = bytes(content[:1])
    if kind == b"{":
        rule = "must be a string, a list of strings, or lists of token ids, not an object"
        raise wrong_input("input", rule)
    if kind != b"[":
        return _text_bytes(content)
    start = next(filter(None, (piece.lstrip(_BLANKS) for piece in pieces(content[1:]))))[:1]
    if start.isdigit() or start == b"-":
        num_ids = _count_ids(content, "input")
        _check_total(num_ids, "input", max_request_tokens)
        return _ID_BYTES * num_ids
    return _list_bytes(content, max_request_tokens)


def _list_bytes(content: memoryview, max_request_tokens: int) -> int:
    """As `_input_bytes`, of a list that does not begin with a token id."""
    try:
        elements = msgspec.structs.astuple(_elements().decode(content))
    except msgspec.ValidationError:
        raise wrong_input("input", f"holds more than the {MAX_INPUTS} inputs allowed") from None
    object_bytes = num_ids = 0
    for index, element in enumerate(elements):
        part, name = memoryview(element), f"input[{index}]"
        kind = bytes(part[:1])
        if not kind:
            break
        if kind == b"[":
            num_ids += _count_ids(part, name)
            _check_total(num_ids, name, max_request_tokens)
        elif kind == b"{":
            raise wrong_input(name, "must be a string or a list of token ids, not an object")
        else:
            object_bytes += _text_bytes(part)
    return object_bytes + _ID_BYTES * num_ids


def _check_total(num_ids: int, name: str, max_request_tokens: int) -> None:
    if num_ids > DECODED_BEFORE_CUT * max_request_tokens:
        raise TooManyTokens(max_request_tokens=max_request_tokens, position=name)


def _count_ids(content: memoryview, name: str) -> int:
    """How many values a list has that should hold token ids alone."""
    num_ids, num_lists = 1, 0
    for piece in pieces(content):
        num_ids += piece.count(b",")
        num_lists += piece.count(b"[")
        if num_lists > 1 or b'"' in piece or b"{" in piece:
            raise wrong_input(name, "must be a list of token ids (integers)")
    return num_ids


def _text_bytes(content: memoryview) -> int:
    """What a text takes as an object: each character as much as its widest one."""
    width, num_chars = 1, 0
    for piece in pieces(content):
        num_chars += len(piece)
        if not piece.isascii():
            units = np.frombuffer(piece, np.uint8)
            num_chars -= int(np.count_nonzero(units & 0xC0 == 0x80))  # of a character begun before
            width = max(width, 4 if units.max() >= 0xF0 else 2)
        if b"\\u" in piece:
            width = 4
            if b"\\\\" not in piece:  # then each of them is an escape, of six bytes
                num_chars -= 5 * piece.count(b"\\u")
    return _TEXT_BYTES + width * num_chars
