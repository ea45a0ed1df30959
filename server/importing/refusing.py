"""Foreign errors as refusals: a graph, a tokenizer or a library may fail with anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from server.errors import EmbeddingServerError, ImportRefused, first_line


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever a graph fails with into one line; ONNX Runtime's errors share no base."""
    try:
        yield
    except EmbeddingServerError:
        raise
    except Exception as error:
        raise ImportRefused(f"{what}: {first_line(error)}") from error
