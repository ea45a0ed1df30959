"""Foreign errors as refusals: a graph, a tokenizer or a library may fail with anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from server.errors import EmbeddingServerError, ImportRefused, first_line
from server.program.rust_panics import panics_as_errors


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever a graph fails with into one line; ONNX Runtime's errors share no base."""
    try:
        with panics_as_errors():
            yield
    except EmbeddingServerError:
        raise
    except Exception as error:
        raise ImportRefused(f"{what}: {first_line(error)}") from error
