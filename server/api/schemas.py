"""The shapes on the wire: reading an embeddings request, writing its answer.

Knows nothing of how vectors are made.
"""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

from server.api.outline import MAX_INPUTS, Outline, check_utf8, wrong_input
from server.catalog.card import Card
from server.errors import InvalidRequest, MissingArgument, UnrecognizedArgument, shortened
from server.inference.inputs import Inputs, TextInputs, TokenIdInputs
from server.inference.vector_form import JsonEncoding, json_values

MAX_USER_CHARS = 512
MAX_NAME_CHARS = 5_000  # in any spelling of JSON they are a field that a large body may hold, too
MAX_DIMENSIONS = 65_536
LARGE_BODY_BYTES = 64 * 1024  # a longer one is looked at before anything is made of it
JSON_BYTES: dict[JsonEncoding, int] = {"float": 14, "base64": 6}  # of a number, with its comma

_ITEMS = {"minItems": 1, "maxItems": MAX_INPUTS}
_TEXT = {"type": "string", "minLength": 1}
_TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_TOKEN_IDS = {"type": "array", "items": _TOKEN_ID, "minItems": 1}
_INPUT_SCHEMA = {
    "description": "A text, a list of texts, a list of token ids, or a list of such lists.",
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, **_ITEMS},
        _TOKEN_IDS,
        {"type": "array", "items": _TOKEN_IDS, **_ITEMS},
    ],
}


def read_inputs(value: object) -> Inputs:
    """The `input` field in any of its four forms.

    Raises:
        InvalidRequest: names the position of the first input that is wrong.
    """
    if isinstance(value, str):
        return TextInputs(is_list=False, texts=_check_texts([value], is_list=False))
    if not isinstance(value, list):
        raise _wrong(
            "input", "must be a string, a list of strings, or lists of token ids", got=value
        )
    if not value:
        raise _wrong("input", "must not be an empty list")
    first = value[0]
    if type(first) is int:
        return TokenIdInputs(is_list=False, token_ids=[_check_ids(value, "input")])
    if len(value) > MAX_INPUTS:
        raise _wrong("input", f"holds {len(value)} inputs, more than the {MAX_INPUTS} allowed")
    if isinstance(first, str):
        return TextInputs(is_list=True, texts=_check_texts(value, is_list=True))
    if isinstance(first, list):
        ids = [_check_ids(inner, f"input[{index}]") for index, inner in enumerate(value)]
        return TokenIdInputs(is_list=True, token_ids=ids)
    raise _wrong("input[0]", "must be a string, a list of token ids, or a token id", got=first)


def _check_texts(values: list[Any], *, is_list: bool) -> list[str]:
    for index, text in enumerate(values):
        if not isinstance(text, str):
            raise _wrong(f"input[{index}]", "must be a string like the inputs before it", got=text)
        if not text:
            name = f"input[{index}]" if is_list else "input"
            raise _wrong(name, "must not be an empty string")
    return values


def _check_ids(values: object, name: str) -> list[int]:
    if not isinstance(values, list):
        raise _wrong(name, "must be a list of token ids like the inputs before it", got=values)
    if not values:
        raise _wrong(name, "must not be an empty list")
    if set(map(type, values)) == {int} and min(values) >= 0:  # millions of ids take no time
        return values
    for index, token_id in enumerate(values):
        if type(token_id) is not int:  # bool is a subclass of int
            raise _wrong(f"{name}[{index}]", "must be a token id (an integer)", got=token_id)
        if token_id < 0:
            raise _wrong(f"{name}[{index}]", "must be a token id of at least 0")
    raise AssertionError("unreachable: one of them is wrong")


_JSON_NAMES = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "a list",
    dict: "an object", type(None): "null",
}  # fmt: skip


def _wrong(name: str, rule: str, *, got: object = ...) -> InvalidRequest:
    return wrong_input(name, rule if got is ... else f"{rule}, not {_JSON_NAMES[type(got)]}")


class RequestBody(BaseModel):
    """What the body of every route has in common: nothing but what is known, in its own types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @classmethod
    def read(cls, body: bytes | bytearray) -> Self:
        """Parse and check a request body that is not large.

        Raises:
            InvalidRequest: not JSON, or it violates the contract; names the field.
        """
        mark_bytes = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
        try:
            fields = orjson.loads(memoryview(body)[mark_bytes:] if mark_bytes else body)
        except orjson.JSONDecodeError as error:
            check_utf8(body)
            position = mark_bytes + len(error.doc[: error.pos].encode())
            raise InvalidRequest(
                f"The request body is not valid JSON: {error.msg} at byte {position}."
            ) from None
        return cls.of(fields)

    @classmethod
    def outline(cls, body: bytes | bytearray, *, max_request_tokens: int) -> Outline:
        """What a large body would become; see `Outline.of`."""
        return Outline.of(body, cls.model_fields, max_request_tokens=max_request_tokens)

    @classmethod
    def of(cls, fields: object) -> Self:
        """Check what a body held.

        Raises:
            InvalidRequest: it violates the contract; names the field.
        """
        if not isinstance(fields, dict):
            found = _JSON_NAMES[type(fields)]
            raise InvalidRequest(f"The request body must be a JSON object, not {found}.")
        known = cls.model_fields
        unknown = [name for name in fields if name not in known]
        if unknown:  # found here: pydantic would make an error object for each of a million
            raise UnrecognizedArgument(unknown)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _explain(error) from None


ModelName = Annotated[
    str, Field(max_length=MAX_NAME_CHARS, description="Name or alias of a served model.")
]
InputField = Annotated[Inputs, PlainValidator(read_inputs), WithJsonSchema(_INPUT_SCHEMA)]
# Part of a database's key, which cannot be of any length.
User = Annotated[str, Field(max_length=MAX_USER_CHARS)] | None


class EmbeddingRequest(RequestBody):
    """The body of POST /v1/embeddings."""

    model: ModelName
    input: InputField
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)] | None = Field(
        None,
        description="Size of the vectors; below the native size for Matryoshka-capable models only.",
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="How vectors are written: numbers (default) or base64 of float32."
    )
    user: User = Field(None, description="Who this request is for.")
    safety_identifier: User = Field(None, description="The newer name of `user`.")
    truncate: bool | None = Field(None, description="Cut an over-long input, do not refuse it.")
    input_type: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = Field(
        None,
        description="Puts the model's own prompt for this purpose before each input: `query`, "
        "`document`, the name of one of its prompts, or another name for the same purpose.",
    )


def _explain(error: ValidationError) -> InvalidRequest:
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return MissingArgument(name)
    rule = problem["msg"].removeprefix("Input should be ")
    got = problem["input"]
    shown = f"'{shortened(got, 50)}'" if isinstance(got, str) else str(got)[:50]
    if isinstance(got, dict | list):
        shown = _JSON_NAMES[type(got)]
    return InvalidRequest(
        f"Invalid value for '{name}': {name} must be {rule}, not {shown}.", param=name
    )


def answer_bytes(card: Card, num_inputs: int, dimensions: int, encoding: JsonEncoding) -> int:
    """What vectors and answer take at most: as they come, cut, and written (twice: it grows)."""
    return num_inputs * (4 * card.embedding_dim + (4 + 2 * JSON_BYTES[encoding]) * dimensions)


def embeddings_json(
    vectors: NDArray[np.float32],
    *,
    model: str,
    num_tokens: int,
    encoding_format: JsonEncoding,
) -> bytes:
    """The answer's body, in the order of `vectors` (texts, dimensions), C-contiguous float32."""
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": value}
            for index, value in enumerate(json_values(vectors, encoding_format))
        ],
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def model_object(card: Card) -> dict[str, Any]:
    """One model as OpenAI's model object with this server's own fields behind."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created_unix_s,
        "owned_by": card.owned_by,
        "embedding_dim": card.embedding_dim,
        "max_input_tokens": card.max_input_tokens,
        "normalized": card.normalize,
        "matryoshka": card.matryoshka is not None,
        "dimensions": list(card.matryoshka.dimensions) if card.matryoshka else None,
        "aliases": list(card.aliases),
        "prompts": dict(card.prompts),
        "default_prompt": card.default_prompt,
        "fingerprint": card.fingerprint,
    }
