"""Long inputs: in order, one window ahead, and what was computed is written whatever happens then."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.card import Card
from server.errors import InferenceFailed, OutputFileError, TextFileError
from server.inference.inputs import TextInputs
from server.inference.loader import Encoder
from server.offline import embed_windows as module
from server.offline.embed_windows import EmbeddingProgress, embed_windows
from server.offline.embedder import Embedder
from server.offline.engine_thread import EngineCall
from server.offline.texts import START, Mark, TextWindow
from server.settings import Settings
from tests.command_line import interruptible
from tests.fakes import FAKE_DIM, FakeBackend


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def embedder(plain_card: Card, encoder: Encoder, backend: FakeBackend) -> Iterator[Embedder]:
    fake = Encoder(encoder.tokenizer, (backend,), FAKE_DIM)
    with Embedder(plain_card, fake, None, Settings(threads=1)) as embedder:
        yield embedder
        backend.gate.set()


def window(number: int, *texts: str) -> TextWindow:
    """The `number`th of windows of two lines with ten bytes each."""
    end = Mark(20 * (number + 1), 2 * (number + 1), 2 * (number + 1), "")
    lines = [2 * number + 1, 2 * number + 2]
    given = list(texts or ("a", "a b"))
    return TextWindow(is_list=True, texts=given, source="in.txt", lines=lines, end=end)


class Written:
    """What was written, by the last line of each window."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.begun = threading.Event()

    def __call__(self, window: TextWindow, vectors: NDArray[np.float32]) -> None:
        self.begun.set()
        assert self.go_on.wait(timeout=30)
        assert vectors[:, 1].tolist() == [3, 4]  # numbers of tokens
        self.lines.append(window.end.lines)


def test_windows_are_written_in_order_and_the_progress_is_told(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_INTERVAL_S", 0.001)
    written, shown = Written(), list[EmbeddingProgress]()
    windows = (window(number) for number in range(1, 40))
    start = START._replace(texts=2, bytes=20)
    embed_windows(
        embedder, windows, written, prompt="", truncate=False, start=start, show=shown.append
    )
    assert written.lines == [2 * number + 2 for number in range(1, 40)]
    assert shown == sorted(shown)
    assert shown[-1] == EmbeddingProgress(texts=80, tokens=39 * 7, read_bytes=800)


def test_work_that_ends_just_after_a_wait_for_it_is_no_failure(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = EngineCall[None].wait

    def wait_and_be_late(call: EngineCall[None], timeout_s: float) -> bool:
        ended = wait(call, timeout_s)
        assert wait(call, 30)  # this thread is not scheduled until it is over
        return ended

    monkeypatch.setattr(module, "PROGRESS_INTERVAL_S", 1e-9)
    monkeypatch.setattr(EngineCall, "wait", wait_and_be_late)
    written = Written()
    embed_windows(embedder, map(window, range(20)), written, prompt="", truncate=False)
    assert len(written.lines) == 20


def test_a_time_limit_that_the_source_ran_into_comes_out(embedder: Embedder) -> None:
    def windows() -> Iterator[TextWindow]:
        yield window(0)
        raise TimeoutError("no answer")

    written = Written()
    with pytest.raises(TimeoutError, match="no answer"):
        embed_windows(embedder, windows(), written, prompt="", truncate=False)
    assert written.lines == [2]


def test_no_more_than_the_next_window_is_read_ahead(
    embedder: Embedder, backend: FakeBackend
) -> None:
    read = []

    def windows() -> Iterator[TextWindow]:
        for number in range(9):
            read.append(number)
            yield window(number)

    backend.gate.clear()
    working = threading.Thread(
        target=embed_windows,
        args=(embedder, windows(), Written()),
        kwargs={"prompt": "", "truncate": False},
    )
    working.start()
    assert backend.entered.acquire(timeout=30)
    working.join(0.2)
    assert read == [0, 1]
    backend.gate.set()
    working.join(30)
    assert read == list(range(9))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cat " * 400, "in.txt line 6: 402 tokens"),
        ("cat " * 300_000, "in.txt line 6: far too many"),
    ],
)
def test_a_text_that_is_too_long_is_named_when_all_before_it_is_written(
    embedder: Embedder, text: str, named: str
) -> None:
    written = Written()
    windows = iter([window(0), window(1), window(2, "a", text), window(3)])
    with pytest.raises(TextFileError, match=named):
        embed_windows(embedder, windows, written, prompt="", truncate=False)
    assert written.lines == [2, 4]
    assert len(embedder.embed(["a"])) == 1  # it goes on


def test_a_text_on_which_the_tokenizer_fails_is_named_once(
    embedder: Embedder, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(inputs: TextInputs, **_: object) -> None:
        raise InferenceFailed(f"{inputs.position(1)}: the tokenizer fails", param="input")

    monkeypatch.setattr(encoder.tokenizer, "encode_texts", fail)
    with pytest.raises(InferenceFailed, match=r"^in\.txt line 4: the tokenizer fails$"):
        embed_windows(embedder, iter([window(1)]), Written(), prompt="", truncate=False)


def test_what_the_source_raises_comes_out_when_all_before_it_is_written(
    embedder: Embedder,
) -> None:
    def windows() -> Iterator[TextWindow]:
        yield window(0)
        yield window(1)
        raise TextFileError("in.txt line 5: blank")

    written = Written()
    with pytest.raises(TextFileError, match="line 5: blank"):
        embed_windows(embedder, windows(), written, prompt="", truncate=False)
    assert written.lines == [2, 4]


def test_what_cannot_be_written_ends_it(embedder: Embedder) -> None:
    def write(window: TextWindow, vectors: NDArray[np.float32]) -> None:
        raise OutputFileError("no space")

    with pytest.raises(OutputFileError, match="no space"):
        embed_windows(embedder, map(window, range(99)), write, prompt="", truncate=False)


def test_a_display_that_fails_ends_the_run(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_INTERVAL_S", 0.001)
    written = Written()

    def show(progress: EmbeddingProgress) -> None:
        raise ValueError("no display")

    windows = map(window, range(1_000_000))
    with pytest.raises(ValueError, match="no display"):
        embed_windows(embedder, windows, written, prompt="", truncate=False, show=show)
    count = len(written.lines)
    assert len(embedder.embed(["a"])) == 1
    assert len(written.lines) == count < 1000


def test_a_signal_waits_until_what_was_computed_is_written(
    embedder: Embedder, backend: FakeBackend
) -> None:
    written = Written()
    written.go_on.clear()
    main = threading.get_ident()

    def interrupt() -> None:
        assert written.begun.wait(timeout=30)
        threading.Event().wait(0.1)  # until the next window is computed and waits to be written
        signal.pthread_kill(main, signal.SIGINT)
        threading.Event().wait(0.2)
        written.go_on.set()

    with interruptible():
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            embed_windows(embedder, map(window, range(99)), written, prompt="", truncate=False)
        assert written.lines
        interrupter.join()
    with pytest.raises(RuntimeError, match="closed"):
        embedder.embed(["a"])


def test_closing_ends_a_run_whose_source_is_silent(embedder: Embedder) -> None:
    silence = threading.Event()

    def windows() -> Iterator[TextWindow]:
        yield window(0)
        assert silence.wait(timeout=30)

    written = Written()

    def close() -> None:
        assert written.begun.wait(timeout=30)
        embedder.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(RuntimeError, match="closed"):
        embed_windows(embedder, windows(), written, prompt="", truncate=False)
    closer.join(30)
    assert written.lines == [2]
    silence.set()
