"""Bars are drawn on a terminal only, and what they hand out may always be called."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from server.commands.progress import (
    FittingBars,
    byte_progress,
    embedding_progress,
    step_progress,
)
from server.offline.embed_windows import EmbeddingProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


HALF_WAY = EmbeddingProgress(texts=5, tokens=100, read_bytes=50)
BARS: list[tuple[Callable[[], AbstractContextManager[Any]], tuple[object, ...], str]] = [
    (lambda: byte_progress("sha256", 100), (50,), "sha256"),
    (lambda: step_progress("fitting", 10), (), "1/10"),
    (lambda: FittingBars().steps("fitting", 10), (), "1/10"),
    (lambda: FittingBars().embedding("scored pairs", 10), (HALF_WAY,), "5 texts"),
    (
        lambda: embedding_progress("embedding", None, unit="read_bytes", start=10),
        (HALF_WAY,),
        "tokens/s",
    ),
]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize(("open_bar", "told", "shown"), BARS)
def test_a_bar_is_drawn_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO],
    open_bar: Callable[[], AbstractContextManager[Any]],
    told: tuple[object, ...],
    shown: str,
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stderr = stream()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stderr)
        with open_bar() as tell:
            tell(*told)
    if stderr.isatty():
        assert shown in stderr.getvalue()
    else:
        assert stderr.getvalue() == ""
