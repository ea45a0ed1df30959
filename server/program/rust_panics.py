"""Panics of libraries written in Rust (tokenizers, tiktoken, pydantic).

They reach Python as a BaseException, whose class cannot be imported and is another in each library.
The library goes on afterwards. What it writes to standard error before is its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class RustPanic(RuntimeError):
    """What a library did not foresee, as an Exception."""


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has panicked."""
    return type(error).__module__ == "pyo3_runtime"


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """In this block, or function, a panic is a RustPanic."""
    try:
        yield
    except BaseException as error:
        if is_panic(error):
            raise RustPanic(str(error)) from error
        raise
