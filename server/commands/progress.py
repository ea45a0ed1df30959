"""Bars that show how far a long command is, on standard error; only a terminal ever sees one.

Not for pipes and logs. Imports what draws a bar when there is a terminal.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from server.offline.embed_windows import EmbeddingProgress, ShowProgress


@contextlib.contextmanager
def byte_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to be called with the bytes done since last time."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with _bar(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def step_progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives a function to be called after each of `total` steps."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    with _bar(
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


@contextlib.contextmanager
def embedding_progress(
    label: str, total: int | None, *, unit: Literal["read_bytes", "texts"], start: int = 0
) -> Iterator[ShowProgress]:
    """Gives a function that shows how far embedding is: texts, tokens/s, time left.

    Args:
        total, start: in `unit`; a total of None (a pipe) shows no time left.
    """
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    began_s = time.perf_counter()
    with _bar(
        TextColumn("{task.description}"),
        BarColumn(20),
        TextColumn("{task.fields[texts]:,} texts"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task(label, total=total, completed=start, texts=0, speed=0)

        def show(progress: EmbeddingProgress) -> None:
            speed = progress.tokens / max(time.perf_counter() - began_s, 1e-3)
            done = getattr(progress, unit)
            bar.update(task, completed=done, texts=progress.texts, speed=speed)

        yield show


def _bar(*columns: ProgressColumn) -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True), transient=True)


class FittingBars:
    """Bars for what is measured or learned from texts; a `FittingProgress`."""

    def embedding(self, label: str, texts: int) -> AbstractContextManager[ShowProgress]:
        """So many texts are about to be embedded."""
        return embedding_progress(label, texts, unit="texts")

    def steps(self, label: str, count: int) -> AbstractContextManager[Callable[[], None]]:
        """What is given is called after each of `count` steps."""
        return step_progress(label, count)
