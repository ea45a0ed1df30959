"""Sixteen digits that tell whether two servers give the same vectors.

A client stores them beside its vectors, so what a model has today it must have for ever: whoever
adds a fact that decides a vector leaves it out for the models that do not have it. Knows nothing of
cards or files; pure, any thread may call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

_DIGITS = 16


class Prompted(NamedTuple):
    """The prompts that decide a vector."""

    prompts: Mapping[str, str]  # put before queries and documents, by purpose
    default_prompt: str | None  # of these purposes, the one that is meant where none is named
    default_text: str | None = None  # put before texts without a purpose, if it is neither of these
    prompt: str | None = None  # put before the texts of this answer alone, if it is none of these


def fingerprint_of(
    *,
    files: Mapping[str, str],
    rotation: str | None,
    layer_norm: bool,
    pooling: str,
    normalize: bool,
    prompted: Prompted,
    max_input_tokens: int,
    dtype: str,
    recipe: Mapping[str, object] | None = None,
) -> str:
    """The hexadecimal digits over all that decides a vector; equal ones mean equal vectors.

    Args:
        files: sha256 of weights, graph and tokenizer, by name.
        rotation: sha256 of the matrix that turns the vectors.
        layer_norm: the vector is normalised over its components before it is cut.
        dtype: numbers in which vectors are computed.
        recipe: how the weights came to be in these numbers, if there is more than one way.
    """
    facts: dict[str, object] = {
        "files": dict(files),
        "rotation": rotation,
        "pooling": pooling,
        "normalize": normalize,
        "prompts": dict(prompted.prompts),
        "default_prompt": prompted.default_prompt,
        "max_input_tokens": max_input_tokens,
        "dtype": dtype,
    }
    if recipe is not None:
        facts["recipe"] = dict(recipe)
    if layer_norm:
        facts["layer_norm"] = True
    if prompted.default_text:
        facts["default_text"] = prompted.default_text
    if prompted.prompt:
        facts["prompt"] = prompted.prompt
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_DIGITS]
