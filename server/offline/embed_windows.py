"""Windows of a long input through an embedder: read, computed and written beside each other.

What was computed is written before an error or a signal goes on. Knows no formats of files.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.engine.engine import Engine
from server.errors import (
    ContextLengthExceeded,
    InferenceFailed,
    TextFileError,
    TokenWithoutEmbedding,
    TooManyTokens,
)
from server.offline.embedder import Embedder
from server.offline.texts import START, WINDOW_TEXTS, Mark, TextWindow
from server.offline.window_run import UnderWay, WindowRun
from server.program.daemon_threads import DaemonThreads
from server.program.termination import ending_at_once

PROGRESS_INTERVAL_S = 0.2


class EmbeddingProgress(NamedTuple):
    """How far the work has come."""

    texts: int
    tokens: int  # computed in this run
    read_bytes: int  # of the input


ShowProgress = Callable[[EmbeddingProgress], None]


def embed_windows(
    embedder: Embedder,
    windows: Iterator[TextWindow],
    write: Callable[[TextWindow, NDArray[np.float32]], None],
    *,
    prompt: str,
    truncate: bool,
    start: Mark = START,
    show: ShowProgress = lambda progress: None,
) -> None:
    """Embed all windows; blocks until the last one is written.

    Args:
        windows: read in a thread of its own, one ahead.
        write: called for one window after the other, in order, in a thread of its own; the
            vectors are (texts, embedding_dim), float32, as the encoder gives them.
        prompt: put in front of each text.
        truncate: cut over-long texts or refuse them.
        start: where the windows begin.
        show: called in this thread a few times a second.

    Raises:
        TextFileError: a text is too long, or holds a token that the weights lack; windows
            before it are written.
        EmbeddingServerError: whatever `windows` or `write` raise.
        KeyboardInterrupt, Terminated: on SIGINT or SIGTERM, once the last computed window is
            written; the embedder is closed then.
    """
    job = _WindowJob(embedder.card, windows, write, prompt, truncate, start)
    call = embedder.begin(job.run)
    try:
        while not call.wait(PROGRESS_INTERVAL_S):
            show(job.progress)
        call.result()
        show(job.progress)
    except Exception:
        call.cancel(and_wait=True)
        raise
    except BaseException:
        with ending_at_once():  # by the second signal, which does not wait for the threads
            call.cancel(and_wait=True)
            embedder.close()
        raise


def embed_sample(
    embedder: Embedder,
    texts: list[str],
    *,
    prompt: str,
    show: ShowProgress = lambda progress: None,
) -> NDArray[np.float32]:
    """Vectors of texts in memory, over-long ones cut: (texts, embedding_dim), float32.

    As the encoder gives them: not rotated. Raises as `embed_windows`.
    """
    vectors = np.empty((len(texts), embedder.card.embedding_dim), dtype=np.float32)

    def windows() -> Iterator[TextWindow]:
        for start in range(0, len(texts), WINDOW_TEXTS):
            part = texts[start : start + WINDOW_TEXTS]
            end = START._replace(texts=start + len(part))
            lines = list(range(start + 1, end.texts + 1))
            yield TextWindow(is_list=True, texts=part, source="texts", lines=lines, end=end)

    def write(window: TextWindow, part: NDArray[np.float32]) -> None:
        vectors[window.end.texts - len(part) : window.end.texts] = part

    embed_windows(embedder, windows(), write, prompt=prompt, truncate=True, show=show)
    return vectors


class _WindowJob:
    """One call of `embed_windows`."""

    def __init__(
        self,
        card: Card,
        windows: Iterator[TextWindow],
        write: Callable[[TextWindow, NDArray[np.float32]], None],
        prompt: str,
        truncate: bool,
        start: Mark,
    ) -> None:
        self._card = card
        self._windows = windows
        self._write = write
        self._prompt = prompt
        self._truncate = truncate
        self._threads = DaemonThreads("offline")
        # What is done and what is under way, told at once: other threads look.
        self._state: tuple[EmbeddingProgress, UnderWay[TextWindow] | None] = (
            EmbeddingProgress(start.texts, 0, start.bytes),
            None,
        )

    async def run(self, engine: Engine) -> None:
        """In the engine's thread."""
        run = WindowRun(
            engine,
            self._fetch,
            prompt=self._prompt,
            truncate=self._truncate,
            naming=partial(_named_by_line, self._card),
            began=self._begin,
        )
        writing = None
        try:
            async with contextlib.aclosing(run.vectors()) as computed:
                async for window, vectors in computed:
                    self._state = self._done_with(window), None
                    if writing is not None:
                        await asyncio.shield(writing)
                    writing = self._threads.run(partial(self._write, window, vectors))
        finally:
            if writing is not None:  # also when interrupted: what was computed is kept
                await asyncio.shield(writing)

    @property
    def progress(self) -> EmbeddingProgress:
        """How far it has come; any thread may ask."""
        done, under_way = self._state
        if under_way is None:
            return done
        window, computed = under_way.window, under_way.computed_tokens
        share = computed / under_way.num_tokens
        return EmbeddingProgress(
            done.texts + int(share * len(window.texts)),
            done.tokens + computed,
            done.read_bytes + int(share * (window.end.bytes - done.read_bytes)),
        )

    def _begin(self, under_way: UnderWay[TextWindow]) -> None:
        self._state = self._state[0], under_way

    def _done_with(self, window: TextWindow) -> EmbeddingProgress:
        done, under_way = self._state
        assert under_way is not None
        tokens = done.tokens + under_way.num_tokens
        return EmbeddingProgress(done.texts + len(window.texts), tokens, window.end.bytes)

    async def _fetch(self) -> TextWindow | None:
        return await self._threads.run(lambda: next(self._windows, None))


@contextlib.contextmanager
def _named_by_line(card: Card, window: TextWindow) -> Iterator[None]:
    """Errors of the engine name the file and the line."""
    try:
        yield
    except ContextLengthExceeded as error:
        raise _too_long(card, f"{error.position}: {error.num_tokens}") from None
    except TooManyTokens as error:
        raise _too_long(card, f"{error.position}: far too many") from None
    except TokenWithoutEmbedding as error:
        raise TextFileError(f"{window.position(error.row)} {error.what}") from None
    except InferenceFailed as error:
        if error.param is not None:  # the tokenizer's, which names the text
            raise
        first, last = window.lines[0], window.lines[-1]
        raise InferenceFailed(
            f"{window.source}, between lines {first} and {last}: {error.message}"
        ) from error


def _too_long(card: Card, what: str) -> TextFileError:
    return TextFileError(
        f"{what} tokens, and {card.name} reads {card.max_input_tokens}; shorten the text, or cut "
        "such texts with --truncate"
    )
