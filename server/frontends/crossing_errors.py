"""Errors that cross from one process to the other: class, message and whatever else they hold.

Knows nothing of frames.
"""

from __future__ import annotations

import functools

import orjson

from server.errors import ApiError


def write_error(error: ApiError) -> bytes:
    """The error for the other process."""
    return orjson.dumps([type(error).__name__, vars(error)])


def read_error(content: bytes) -> ApiError:
    """The error as the other process raised it: same class, message and headers."""
    name, fields = orjson.loads(content)
    kind = _kinds()[name]
    # Not by its constructor, which takes what the message was made of.
    error = kind.__new__(kind, fields["message"])
    vars(error).update(fields)
    return error


@functools.cache
def _kinds() -> dict[str, type[ApiError]]:
    found: list[type[ApiError]] = [ApiError]
    for kind in found:  # grows while it is walked
        found += kind.__subclasses__()
    return {kind.__name__: kind for kind in found}
