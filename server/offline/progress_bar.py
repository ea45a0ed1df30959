"""A line on standard error that shows how far a long command is; only where a person sees it.

Not for pipes and logs: if standard error is no terminal, nothing is written.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from server.offline.embedder import Progress


@contextlib.contextmanager
def embedding_bar(
    title: str, *, total: int | None, unit: Literal["read_bytes", "texts"], start: int = 0
) -> Iterator[Callable[[Progress], None]]:
    """Gives a function that shows the progress of embedding: texts, tokens/s, time left.

    Args:
        total, start: in `unit`; a total of None (a pipe) shows no time left.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        TextColumn("{task.fields[texts]:,} texts"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    began_s = time.perf_counter()
    with _bar(*columns) as bar:
        task = bar.add_task(title, total=total, completed=start, texts=0, speed=0)

        def show(progress: Progress) -> None:
            speed = progress.tokens / max(time.perf_counter() - began_s, 1e-3)
            done = getattr(progress, unit)
            bar.update(task, completed=done, texts=progress.texts, speed=speed)

        yield show


@contextlib.contextmanager
def step_bar(title: str, *, total: int) -> Iterator[Callable[[], None]]:
    """Gives a function to be called after each of `total` steps."""
    columns = (
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with _bar(*columns) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def _bar(*columns: TextColumn | BarColumn | MofNCompleteColumn | TimeRemainingColumn) -> Bar:
    console = Console(stderr=True)
    return Bar(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
