"""One model's engine without a server: windows of texts in, vectors out, in order.

The tokenizer, queue and worker threads are those of the server. One window is computed at a time,
while the next one is read and tokenised and the last one written, and micro-batches depend on the
window alone: the same texts give the same bits in every run, whatever the number of threads.
Call from any thread that has no event loop yet. Knows nothing of files.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.engine.admission import Ticket
from server.engine.engine import Engine
from server.engine.pace import choose_pace
from server.errors import (
    ContextLengthExceeded,
    InferenceFailed,
    TextFileError,
    TokenWithoutEmbedding,
    TooManyTokens,
)
from server.inference.backend import TokenIds
from server.inference.loader import Encoder
from server.inference.opening import Opener, select_cards, worker_threads
from server.inference.placement import find_placement
from server.inference.vector_form import VectorForm
from server.metrics import EngineMetrics, Metrics
from server.offline.texts import START, WINDOW_TEXTS, Mark, Window
from server.program.termination import ending_at_once
from server.settings import Settings

PROGRESS_INTERVAL_S = 0.2

Purpose = Literal["query", "document"]
T = TypeVar("T")


class Progress(NamedTuple):
    """How far the work has come."""

    texts: int
    tokens: int  # computed in this run
    read_bytes: int  # of the input


@dataclass(frozen=True, slots=True)
class OfflineModel:
    """A model that was read from disk, every byte checked; cards with a rotation bring it along."""

    card: Card
    encoder: Encoder
    rotation: NDArray[np.float32] | None
    settings: Settings

    def cut(self, vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
        """The encoder's vectors at this size, as the server gives them.

        Also of a model that the server does not cut: what that loses is what is measured.
        """
        form = replace(VectorForm.of(self.card), dimensions=dimensions)
        return form.shape(vectors, self.rotation)


def find_card(settings: Settings, name: str) -> Card:
    """The card with this name or alias as this machine computes it, all its files there.

    Raises:
        SettingError: there is none.
        CardError, ModelFileError: it cannot be used.
    """
    placement = find_placement(settings.device, settings.dtype)
    (card,) = select_cards(settings, [name], placement, check_files=True).cards
    return card


def load_model(settings: Settings, card: Card) -> OfflineModel:
    """Read a model from disk.

    Raises:
        ModelFileError, ModelLoadError: a file is wrong or cannot be used.
    """
    opener = Opener.on_this_machine(settings, spread_alone=False)
    encoder = opener.open_encoder(card.encoder_card)
    return OfflineModel(card, encoder, opener.open_rotation(card), settings)


def embed_windows(
    model: OfflineModel,
    windows: Iterator[Window],
    write: Callable[[Window, NDArray[np.float32]], None],
    *,
    prompt: str,
    truncate: bool,
    start: Mark = START,
    show: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Embed all windows; blocks until the last one is written.

    Args:
        windows: read in a thread of its own, one ahead.
        write: called for one window after the other, in order, in a thread of its own; the vectors
            are (texts, embedding_dim), float32, as the encoder gives them.
        prompt: put in front of each text.
        truncate: cut over-long texts or refuse them.
        start: where the windows begin.
        show: called in this thread a few times a second.

    Raises:
        TextFileError: a text is too long, or holds a token that the weights lack; windows before
            it are written.
        EmbeddingServerError: whatever `windows` or `write` raise.
        KeyboardInterrupt, Terminated: on SIGINT or SIGTERM, once the last computed window is written.
    """
    progress = Progress(start.texts, 0, start.bytes)
    asyncio.run(_Run(model, windows, write, prompt, truncate, show, progress).run())


def embed_texts(
    model: OfflineModel,
    texts: list[str],
    *,
    prompt: str,
    show: Callable[[Progress], None] = lambda progress: None,
) -> NDArray[np.float32]:
    """Vectors of texts in memory, over-long ones cut: (texts, embedding_dim), float32.

    Not rotated. Raises as `embed_windows`.
    """
    vectors = np.empty((len(texts), model.encoder.embedding_dim), dtype=np.float32)

    def windows() -> Iterator[Window]:
        for start in range(0, len(texts), WINDOW_TEXTS):
            part = texts[start : start + WINDOW_TEXTS]
            end = START._replace(texts=start + len(part))
            lines = list(range(start + 1, end.texts + 1))
            yield Window(is_list=True, texts=part, source="texts", lines=lines, end=end)

    def write(window: Window, part: NDArray[np.float32]) -> None:
        vectors[window.end.texts - len(part) : window.end.texts] = part

    embed_windows(model, windows(), write, prompt=prompt, truncate=True, show=show)
    return vectors


class _Run:
    """One call of `embed_windows`."""

    def __init__(
        self,
        model: OfflineModel,
        windows: Iterator[Window],
        write: Callable[[Window, NDArray[np.float32]], None],
        prompt: str,
        truncate: bool,
        show: Callable[[Progress], None],
        progress: Progress,
    ) -> None:
        self._model = model
        self._windows = windows
        self._write = write
        self._prompt = prompt
        self._truncate = truncate
        self._show = show
        self._done = progress

    async def run(self) -> None:
        engine = self._start_engine()
        ahead = asyncio.ensure_future(self._prepare(engine))
        writing: asyncio.Future[None] | None = None
        try:
            while (prepared := await ahead) is not None:
                window, token_ids = prepared
                ahead = asyncio.ensure_future(self._prepare(engine))
                vectors = await self._compute(engine, window, token_ids)
                if writing is not None:
                    await writing
                writing = in_thread(lambda w=window, v=vectors: self._write(w, v))  # type: ignore[misc]
        except BaseException:
            with ending_at_once():  # by the second signal, which does not wait for the threads
                await self._end(engine, ahead, writing)
            raise
        await self._end(engine, ahead, writing)

    async def _end(
        self,
        engine: Engine,
        ahead: asyncio.Future[tuple[Window, list[TokenIds]] | None],
        writing: asyncio.Future[None] | None,
    ) -> None:
        ahead.cancel()
        engine.close()
        if writing is not None:  # also when interrupted: what was computed is kept
            await writing
        await asyncio.gather(ahead, return_exceptions=True)
        # Each thread ends after at most one micro-batch.
        engine.join()

    def _start_engine(self) -> Engine:
        model, settings = self._model, self._model.settings
        name = model.card.encoder_card.name
        tokens = WINDOW_TEXTS * model.encoder.tokenizer.max_input_tokens
        pace = choose_pace(
            model.encoder.capacity,
            cores=worker_threads(settings),
            max_batch_tokens=settings.max_batch_tokens,
        )
        return Engine(
            model.encoder,
            EngineMetrics(Metrics([name], [name]), name),
            pace=replace(pace, share_among_idle=False),
            max_request_tokens=tokens,
            max_queue_tokens=tokens,
            max_wait_s=settings.max_wait_s,
        )

    async def _prepare(self, engine: Engine) -> tuple[Window, list[TokenIds]] | None:
        """The next window and its token ids; None at the end."""
        window = await in_thread(lambda: next(self._windows, None))
        if window is None:
            return None
        try:
            token_ids = await engine.tokenize(
                window, prompt=self._prompt, truncate=self._truncate, own_token_ids=False
            )
        except ContextLengthExceeded as error:
            raise self._too_long(f"{error.position}: {error.num_tokens}") from None
        except TooManyTokens as error:
            raise self._too_long(f"{error.position}: far too many") from None
        return window, token_ids

    def _too_long(self, what: str) -> TextFileError:
        return TextFileError(
            f"{what} tokens, and {self._model.card.name} reads "
            f"{self._model.card.max_input_tokens}; shorten the text, or cut such texts with "
            "--truncate"
        )

    async def _compute(
        self, engine: Engine, window: Window, token_ids: list[TokenIds]
    ) -> NDArray[np.float32]:
        total = sum(map(len, token_ids))
        async with engine.admit(window, key="") as ticket:
            watching = asyncio.ensure_future(self._watch(window, total, ticket))
            try:
                vectors = (await engine.embed(token_ids, ticket)).vectors
            except TokenWithoutEmbedding as error:
                raise TextFileError(f"{window.position(error.row)} {error.what}") from None
            except InferenceFailed as error:
                first, last = window.lines[0], window.lines[-1]
                raise InferenceFailed(
                    f"{window.source}, between lines {first} and {last}: {error.message}"
                ) from error
            finally:
                watching.cancel()
        self._done = self._progress(window, total, computed=total)
        self._show(self._done)
        return vectors

    async def _watch(self, window: Window, total: int, ticket: Ticket) -> None:
        """Show how the window's tokens become fewer, until cancelled."""
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            self._show(self._progress(window, total, computed=total - min(ticket.tokens, total)))

    def _progress(self, window: Window, total: int, *, computed: int) -> Progress:
        done, share = self._done, computed / total
        return Progress(
            done.texts + int(share * len(window.texts)),
            done.tokens + computed,
            done.read_bytes + int(share * (window.end.bytes - done.read_bytes)),
        )


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """The outcome of blocking work in a thread that nobody waits for when the program ends.

    `asyncio.to_thread` would be waited for, and a pipe may never give its next line.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(outcome: T | None, error: BaseException | None) -> None:
        if future.done():  # cancelled
            return
        if error is None:
            future.set_result(outcome)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        outcome, error = None, None
        try:
            outcome = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, outcome, error)

    threading.Thread(target=run, name="offline", daemon=True).start()
    return future
