"""Sixteen digits that tell whether two servers give the same vectors.

A client stores them beside its vectors, so what a model has today it must have for ever: whoever
adds a fact that decides a vector leaves it out for the models that do not have it. Knows nothing of
cards or files; pure, any thread may call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from server.catalog.names import Purpose

_DIGITS = 16


def fingerprint_of(
    *,
    files: Mapping[str, str],
    rotation: str | None,
    layer_norm: bool,
    pooling: str,
    normalize: bool,
    prompts: Mapping[Purpose, str],
    default_prompt: Purpose | None,
    max_input_tokens: int,
    dtype: str,
) -> str:
    """The hexadecimal digits over all that decides a vector; equal ones mean equal vectors.

    Args:
        files: sha256 of weights, graph and tokenizer, by name.
        rotation: sha256 of the matrix that turns the vectors.
        layer_norm: the vector is normalised over its components before it is cut.
        prompts: texts put before inputs, by purpose.
        default_prompt: the purpose that is meant where a request names none.
        dtype: numbers in which vectors are computed.
    """
    facts: dict[str, object] = {
        "files": dict(files),
        "rotation": rotation,
        "pooling": pooling,
        "normalize": normalize,
        "prompts": dict(prompts),
        "default_prompt": default_prompt,
        "max_input_tokens": max_input_tokens,
        "dtype": dtype,
    }
    if layer_norm:
        facts["layer_norm"] = True
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_DIGITS]
