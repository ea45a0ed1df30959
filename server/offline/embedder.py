"""The Python API: a model in this process, texts in, vectors out, without a server.

    from server.offline.embedder import Embedder

    with Embedder.open("all-MiniLM-L6-v2") as embedder:
        vectors = embedder.embed(["Hello, world", "Grüß Gott"])

The tokenizer, queue and worker threads are those of the server, kept between calls. Any thread may
call, and waits. Knows no formats of files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import sys
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.engine.engine import Engine
from server.engine.pace import choose_pace
from server.errors import InferenceFailed, InvalidRequest, TokenWithoutEmbedding
from server.inference.loader import Encoder
from server.inference.opening import Opener, select_cards, worker_threads
from server.inference.vector_form import VectorForm
from server.metrics import EngineMetrics, Metrics
from server.offline.engine_thread import EngineCall, EngineThread
from server.offline.text_lists import TextSlice, check_texts, slices_of
from server.offline.texts import WINDOW_TEXTS
from server.offline.window_run import WindowRun
from server.settings import Settings, load_settings

T = TypeVar("T")


class Embedder:
    """A model that embeds texts; a context manager that ends its threads.

    Calls from several threads at once share the machine fairly. On a CPU a text's vector has the
    same bits in every call and run, whatever is computed at the same time; a publisher's own graph
    and a GPU give the same bits for the same texts in one call, and beside others nearly the same.

    Its threads do not follow into a forked process, where every call raises RuntimeError: open an
    embedder in each worker process.

    Args:
        card: as its devices compute it.
        rotation: the card's, (embedding_dim, embedding_dim), float32; None if it has none.
    """

    def __init__(
        self,
        card: Card,
        encoder: Encoder,
        rotation: NDArray[np.float32] | None,
        settings: Settings,
    ) -> None:
        self.card = card
        self.rotation = rotation
        self._embedding_dim = encoder.embedding_dim
        self._thread = EngineThread(partial(_make_engine, card, encoder, settings))
        # Also for those who do not close. The interpreter's end is the thread's own concern.
        weakref.finalize(self, self._thread.begin_to_close).atexit = False

    @classmethod
    def open(cls, name: str | None = None, **settings: Any) -> Self:
        """Read a model from disk, every byte checked, and have it ready.

        Args:
            name: the card's name, or an alias; None: the first model that the settings serve.
            settings: as for `embedding-server serve`, which win over the environment's: models_dir,
                data_dir, threads, device, dtype, max_batch_tokens, min_parity, check_files.

        Raises:
            SettingError: a setting is wrong, or no model has this name.
            CardError, ModelFileError, ModelLoadError: the model cannot be used.
        """
        given = load_settings(settings)
        given.check_data_dir()
        opener = offline_opener(given)
        return cls.load(find_card(given, opener, name), opener, given)

    @classmethod
    def load(cls, card: Card, opener: Opener, settings: Settings) -> Self:
        """The embedder of a card that was found; raises as `open`."""
        encoder = opener.open_encoder(card.encoder_card)
        return cls(card, encoder, opener.open_rotation(card), settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all threads; calls under way in others raise RuntimeError. A second time is well."""
        self._thread.close()

    def embed(
        self,
        texts: Iterable[str],
        *,
        dimensions: int | None = None,
        input_type: str | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """The vectors that the server answers for these texts, in their order.

        >>> with Embedder.open("all-MiniLM-L6-v2-matryoshka") as embedder:
        ...     vectors = embedder.embed(["Hello, world", "Grüß Gott"], dimensions=64)
        >>> vectors.shape, vectors.dtype.name
        ((2, 64), 'float32')

        Args:
            texts: any number of them, as a list, a tuple, a numpy array or a generator, which is
                read to its end first; they are computed in windows of bounded size.
            dimensions: size of the vectors; None: the model's native size.
            input_type: put the model's prompt for this purpose before each text: `query`,
                `document`, the name of one of its prompts, or another name for the same purpose;
                None: its default prompt, if it has one.
            truncate: cut over-long texts, do not refuse them.

        Returns:
            (texts, dimensions), float32, C-contiguous.

        Raises:
            InvalidRequest: a text is too long, which the message names as `input[3]`. Before
                anything is computed: a text is no string or empty, named likewise; `texts` is one
                string, or has no order, like a set; the model does not have this size, or no such
                prompt.
            InferenceFailed: the model failed on a text.
            RuntimeError: the embedder is closed, or was opened before a fork.
        """
        form = VectorForm.of(self.card, _check_dimensions(dimensions))
        prompt = self.card.prompt_table.text(_check_input_type(input_type))
        checked = check_texts(texts)
        vectors = np.empty((len(checked), self._embedding_dim), np.float32)
        windows = slices_of(checked)

        async def fetch() -> TextSlice | None:
            return next(windows, None)

        async def compute(engine: Engine) -> None:  # must not keep this embedder in memory
            run = WindowRun(engine, fetch, prompt=prompt, truncate=truncate, naming=_named_by_index)
            async with contextlib.aclosing(run.vectors()) as computed:
                async for window, part in computed:
                    vectors[window.start : window.start + len(part)] = part

        call = self.begin(compute)
        try:
            call.result()
        except BaseException:
            call.cancel()
            raise
        return form.shape(vectors, self.rotation)

    def begin(self, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> EngineCall[T]:
        """Begin other work in the engine's event loop; see `EngineThread.begin`."""
        return self._thread.begin(work)


def offline_opener(settings: Settings) -> Opener:
    """Opens models so that the same windows give the same bits in every run.

    Raises:
        SettingError: a device is asked for that is not there.
    """
    return Opener.on_this_machine(settings, spread_alone=False)


def find_card(settings: Settings, opener: Opener, name: str | None = None) -> Card:
    """The card with this name or alias as the opener's devices compute it, all its files there.

    Args:
        name: None: the first model that the settings serve.

    Raises:
        SettingError: there is none.
        CardError, ModelFileError: it cannot be used.
    """
    names = [name or settings.model[0]]
    (card,) = select_cards(settings, names, opener.placement, check_files=True).cards
    return card


def _check_dimensions(given: int | None) -> int | None:
    """Any integer, also numpy's; a fraction would be cut off, and True would be 1."""
    if given is None:
        return None
    if not isinstance(given, bool | np.bool_):
        with contextlib.suppress(TypeError):
            return operator.index(given)
    raise InvalidRequest(
        f"Invalid value for 'dimensions': dimensions must be an integer, not {given!r:.50}.",
        param="dimensions",
    )


def _check_input_type(given: object) -> str | None:
    """Text, or nothing; the card says which texts it knows."""
    if given is None or isinstance(given, str):
        return given
    raise InvalidRequest(
        f"Invalid value for 'input_type': input_type must be a string, not {given!r:.50}.",
        param="input_type",
    )


def _make_engine(card: Card, encoder: Encoder, settings: Settings) -> Engine:
    name = card.encoder_card.name
    pace = choose_pace(
        encoder.capacity,
        cores=worker_threads(settings),
        max_batch_tokens=settings.max_batch_tokens,
        concurrent_passes=encoder.backends[0].concurrent_passes,
    )
    return Engine(
        encoder,
        EngineMetrics(Metrics([name], [name]), name),
        pace=dataclasses.replace(pace, share_among_idle=False),
        max_request_tokens=WINDOW_TEXTS * encoder.tokenizer.max_input_tokens,
        # Callers wait for their own work: nobody is to be sent away.
        max_queue_tokens=sys.maxsize,
        max_wait_s=float("inf"),
    )


@contextlib.contextmanager
def _named_by_index(window: TextSlice) -> Iterator[None]:
    """Errors of the engine name the texts as `input[3]`."""
    try:
        yield
    except TokenWithoutEmbedding as error:
        raise error.at(window.position(error.row)) from None
    except InferenceFailed as error:
        # The engine's numbers are the caller's in the first window, and the tokenizer's everywhere.
        if not window.start or error.param is not None:
            raise
        first, last = window.position(0), window.position(len(window.texts) - 1)
        raise InferenceFailed(f"Of {first} to {last}: {error.message}") from error
