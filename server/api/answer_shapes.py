"""The shapes of the answers, as JSON Schema: what /openapi.json says of each route's 200.

`exactly` says that an object has these fields, all of them and no other.
"""

from __future__ import annotations

from typing import Any

from server.api.outline import MAX_INPUTS
from server.engine.interface import Phase

Schema = dict[str, Any]  # JSON Schema


def exactly(**properties: Schema) -> Schema:
    """An object with these fields, all of them and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_STRING: Schema = {"type": "string"}
_STRINGS: Schema = {"type": "array", "items": _STRING}
_BOOLEAN: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_POSITIVE: Schema = {"type": "integer", "minimum": 1}

EMBEDDINGS = exactly(
    object={"const": "list"},
    data={
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_INPUTS,
        "items": exactly(
            object={"const": "embedding"},
            index={**_COUNT, "maximum": MAX_INPUTS - 1},
            embedding={
                "description": "Numbers, or base64 of little-endian float32.",
                "anyOf": [
                    {"type": "array", "items": {"type": "number"}, "minItems": 1},
                    {"type": "string", "contentEncoding": "base64", "minLength": 8},
                ],
            },
        ),
    },
    model=_STRING,
    usage=exactly(prompt_tokens=_POSITIVE, total_tokens=_POSITIVE),
)
MODEL = exactly(
    id=_STRING,
    object={"const": "model"},
    created=_COUNT,
    owned_by=_STRING,
    embedding_dim=_POSITIVE,
    max_input_tokens=_POSITIVE,
    normalized=_BOOLEAN,
    matryoshka=_BOOLEAN,
    dimensions={"type": ["array", "null"], "items": _POSITIVE, "minItems": 1},
    aliases=_STRINGS,
    prompts={"type": "object", "additionalProperties": _STRING},
    default_prompt={"type": ["string", "null"]},
    fingerprint={"type": "string", "pattern": "^[0-9a-f]{16}$"},
)
MODELS = exactly(object={"const": "list"}, data={"type": "array", "items": MODEL})
ALIVE = exactly(status={"const": "alive"})
READY: Schema = {
    "type": "object",
    "properties": {
        "status": {"const": "ready"},
        "troubles": {
            "description": "What is away or fails, and what that means; only if something is.",
            "type": "object",
            "minProperties": 1,
            "additionalProperties": _STRING,
        },
    },
    "required": ["status"],
    "additionalProperties": False,
}
HEALTH = exactly(
    status={"enum": [*(phase.value for phase in Phase), "failing"]},
    models={
        "type": "array",
        "minItems": 1,
        "items": exactly(
            name=_STRING,
            encoder=_STRING,
            loaded=_BOOLEAN,
            file_bytes=_COUNT,
            resident_bytes={"type": ["integer", "null"], "minimum": 0},
        ),
    },
)
