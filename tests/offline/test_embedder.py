"""The Python API: vectors as the server answers them, from any thread, and a clean end."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import doctest
import gc
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.catalog.card import TOKENIZER_FILE, Card
from server.engine.engine import Engine
from server.errors import (
    ContextLengthExceeded,
    InferenceFailed,
    InvalidRequest,
    ModelFileError,
    SettingError,
)
from server.inference.backend import TokenIds
from server.inference.inputs import TextInputs
from server.inference.loader import Encoder
from server.inference.tokenizer import Tokenizer
from server.offline import embedder as embedder_module
from server.offline.embedder import Embedder
from server.offline.texts import WINDOW_TEXTS
from server.settings import Settings
from tests.command_line import interruptible
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY
from tests.fakes import FAKE_DIM, FakeBackend
from tests.panics import let_panic
from tests.waiting import wait_for

TEXTS = [f"{word} " * count for count in (1, 3, 17, 60) for word in ("cat", "Zürich", "naïve 42")]


@pytest.fixture(scope="module")
def plain() -> Iterator[Embedder]:
    with Embedder.open(PLAIN, models_dir=REPOSITORY / "models", threads=2) as embedder:
        yield embedder


@pytest.fixture(scope="module")
def matryoshka() -> Iterator[Embedder]:
    with Embedder.open(MATRYOSHKA, models_dir=REPOSITORY / "models", threads=1) as embedder:
        yield embedder


@pytest.fixture
def unused(fake: Embedder, backend: FakeBackend) -> Iterator[Embedder]:
    """Nothing is computed for the caller."""
    yield fake
    assert backend.shapes == []


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def fake(plain_card: Card, encoder: Encoder, backend: FakeBackend) -> Iterator[Embedder]:
    """Over a forward pass that can be held up."""
    with over(backend, plain_card, encoder) as embedder:
        yield embedder
        backend.gate.set()


def over(backend: FakeBackend, card: Card, encoder: Encoder) -> Embedder:
    fake = Encoder(encoder.tokenizer, (backend,), FAKE_DIM)
    return Embedder(card, fake, None, Settings(threads=1))


async def embed_one(engine: Engine) -> None:
    """The work of a call for one text."""
    async with engine.admit(TextInputs(is_list=True, texts=["a"]), key="") as ticket:
        await engine.embed([np.ones(3, np.int32)], ticket)


def running(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def threads_of_embedders() -> list[threading.Thread]:
    names = ("engine", "replica", "tokenize", "offline")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


async def count_tasks(engine: Engine) -> int:
    return len(asyncio.all_tasks())


class TestVectors:
    def test_the_example_of_the_docstring_does_what_it_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(REPOSITORY)
        finder = doctest.DocTestFinder()
        (example,) = (
            found for found in finder.find(Embedder, module=embedder_module) if found.examples
        )
        assert doctest.DocTestRunner().run(example).failed == 0

    @pytest.mark.server
    @pytest.mark.parametrize("dimensions", [None, 64])
    def test_they_are_those_that_the_server_answers(
        self, http: httpx.Client, dimensions: int | None
    ) -> None:
        def served(*texts: str) -> NDArray[np.float32]:
            body: dict[str, object] = {
                "model": MATRYOSHKA,
                "input": texts,
                "encoding_format": "base64",
            }
            body["dimensions"] = dimensions or 384
            rows = http.post("/v1/embeddings", json=body).json()["data"]
            return np.array([np.frombuffer(base64.b64decode(r["embedding"]), "<f4") for r in rows])

        with Embedder.open(MATRYOSHKA, models_dir=REPOSITORY / "models") as embedder:
            found = embedder.embed(TEXTS, dimensions=dimensions)
            assert np.abs(found - served(*TEXTS)).max() <= 1e-6
            for text in TEXTS[:6]:
                alone = embedder.embed([text], dimensions=dimensions)
                assert alone.tobytes() == served(text).tobytes()

    def test_they_have_the_shape_that_is_promised(self, plain: Embedder) -> None:
        for count in (0, 1, len(TEXTS)):
            vectors = plain.embed(TEXTS[:count])
            assert vectors.shape == (count, 384)
            assert vectors.dtype == np.float32
            assert vectors.flags.c_contiguous

    @pytest.mark.parametrize("kind", [list, tuple, iter, np.array, deque])
    def test_the_same_texts_in_any_order_of_their_own_give_the_same_bits(
        self, plain: Embedder, kind: Callable[[list[str]], Iterable[str]]
    ) -> None:
        assert plain.embed(kind(TEXTS)).tobytes() == plain.embed(TEXTS).tobytes()

    @pytest.mark.parametrize("kind", [int, np.int32, np.uint8])
    def test_a_size_may_be_any_integer(
        self, matryoshka: Embedder, kind: Callable[[int], int]
    ) -> None:
        assert matryoshka.embed(["a"], dimensions=kind(64)).shape == (1, 64)

    @settings(max_examples=15)
    @given(
        order=st.permutations(range(len(TEXTS))),
        cuts=st.sets(st.integers(1, len(TEXTS) - 1)),
    )
    def test_any_split_over_calls_and_threads_gives_the_same(
        self, plain: Embedder, order: list[int], cuts: set[int]
    ) -> None:
        expected = plain.embed(TEXTS)
        edges = [0, *sorted(cuts), len(order)]
        parts = [order[begin:end] for begin, end in itertools.pairwise(edges)]
        with ThreadPoolExecutor(4) as threads:
            found = threads.map(lambda part: plain.embed([TEXTS[i] for i in part]), parts)
            assert np.abs(np.concatenate(list(found)) - expected[order]).max() <= 1e-6

    def test_many_windows_come_in_order(self, fake: Embedder) -> None:
        texts = ["a" if number % 3 else "a b" for number in range(2 * WINDOW_TEXTS + 5)]
        expected = [4 if text == "a b" else 3 for text in texts]
        assert fake.embed(texts)[:, 1].tolist() == expected

    def test_nobody_is_sent_away_however_much_waits(
        self, plain_card: Card, encoder: Encoder, backend: FakeBackend
    ) -> None:
        given = Settings(threads=1, max_queue_tokens=1, max_wait_s=0.001)
        fake = Encoder(encoder.tokenizer, (backend,), FAKE_DIM)
        backend.gate.clear()
        with Embedder(plain_card, fake, None, given) as embedder, ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(embedder.embed, TEXTS) for _ in range(8)]
            assert backend.entered.acquire(timeout=30)
            backend.gate.set()
            assert all(len(call.result()) == len(TEXTS) for call in calls)


class TestMistakes:
    @pytest.mark.parametrize(
        ("wrong", "named"),
        [
            ("", r"^input\[1030\] must not be an empty string"),
            (7, r"^input\[1030\] must be a string, not int"),
            (None, r"^input\[1030\] must be a string, not NoneType"),
            ("ab\ud800", r"^input\[1030\] holds a lone surrogate at character 2"),
        ],
    )
    def test_a_text_that_is_none_is_named(self, plain: Embedder, wrong: object, named: str) -> None:
        texts: Sequence[object] = [*["a"] * 1030, wrong, "b"]
        with pytest.raises(InvalidRequest, match=named):
            plain.embed(texts)  # type: ignore[arg-type]

    def test_one_string_is_not_taken_for_a_list_of_letters(self, plain: Embedder) -> None:
        with pytest.raises(InvalidRequest, match="not one string"):
            plain.embed("abc")

    def test_a_text_that_is_too_long_is_named_and_can_be_cut(self, plain: Embedder) -> None:
        texts = [*["a"] * 1030, "cat " * 400]
        with pytest.raises(ContextLengthExceeded, match=r"input\[1030\]"):
            plain.embed(texts)
        cut = plain.embed(["cat " * 400, "cat " * 254], truncate=True)
        assert np.abs(cut[0] - cut[1]).max() <= 1e-6

    @pytest.mark.parametrize("wrong", [{"a", "b"}, frozenset("ab"), {"a": "b"}, None, 7, b"ab"])
    def test_what_has_no_order_or_no_texts_is_refused(
        self, unused: Embedder, wrong: Iterable[str]
    ) -> None:
        named = f"^texts must be a sequence of strings, not {type(wrong).__name__}$"
        with pytest.raises(InvalidRequest, match=named) as refused:
            unused.embed(wrong)
        assert refused.value.param == "input"

    def test_what_a_generator_raises_is_not_taken_for_a_wrong_argument(
        self, unused: Embedder
    ) -> None:
        def texts() -> Iterator[str]:
            yield "a"
            raise TypeError("mine")

        with pytest.raises(TypeError, match=r"^mine$"):
            unused.embed(texts())

    @pytest.mark.parametrize("wrong", ["querry", "", 1, True, ["query"], ("query",)])
    def test_a_purpose_that_the_model_does_not_know_is_refused(
        self, unused: Embedder, wrong: Any
    ) -> None:
        named = r"'input_type': input_type must be (one of 'query', 'document', .*|a string),? "
        with pytest.raises(
            InvalidRequest, match=named + f".*not {re.escape(repr(wrong))}"
        ) as refused:
            unused.embed(["a"], input_type=wrong)
        assert refused.value.param == "input_type"

    def test_every_prompt_of_the_model_can_be_put_in_front(
        self, plain_card: Card, encoder: Encoder, backend: FakeBackend
    ) -> None:
        card = plain_card.changed(prompts={"search_query": "what? ", "STS": "like: "})
        asked = {None: "a", "query": "what? a", "text-matching": "like: a", "document": "a"}
        with over(backend, card, encoder) as prompted, over(backend, plain_card, encoder) as bare:
            for input_type, text in asked.items():
                found = prompted.embed(["a"], input_type=input_type)
                assert (found == bare.embed([text])).all()

    @pytest.mark.parametrize("wrong", [64.0, 384.0, "64", True, False, np.True_, [64]])
    def test_a_size_that_is_no_integer_is_refused(self, unused: Embedder, wrong: int) -> None:
        named = "'dimensions': dimensions must be an integer, not " + re.escape(repr(wrong))
        with pytest.raises(InvalidRequest, match=named) as refused:
            unused.embed(["a"], dimensions=wrong)
        assert refused.value.param == "dimensions"

    def test_a_size_that_the_model_does_not_have_is_refused(self, plain: Embedder) -> None:
        with pytest.raises(InvalidRequest, match="dimensions"):
            plain.embed(["a"], dimensions=64)

    def test_a_text_on_which_the_model_fails_is_named_by_its_window(
        self, plain_card: Card, encoder: Encoder
    ) -> None:
        class Picky(FakeBackend):
            def forward(
                self, sequences: Sequence[TokenIds], *, alone: bool = False
            ) -> NDArray[np.float32]:
                if any(len(token_ids) == 4 for token_ids in sequences):
                    raise RuntimeError("four")
                return super().forward(sequences, alone=alone)

        with over(Picky(), plain_card, encoder) as embedder:
            with pytest.raises(InferenceFailed, match=r"^The model failed on input\[2\]"):
                embedder.embed(["a", "a", "a b"])
            with pytest.raises(InferenceFailed, match=r"^Of input\[1024\] to input\[1026\]: "):
                embedder.embed([*["a"] * WINDOW_TEXTS, "a", "a b", "a"])
            assert len(embedder.embed(["a"])) == 1

    def test_a_text_on_which_the_tokenizer_panics_is_named_once_and_others_go_on(
        self, plain_card: Card, encoder: Encoder, tmp_path: Path
    ) -> None:
        place = shutil.copy(plain_card.path(TOKENIZER_FILE), tmp_path)
        tokenizer = Tokenizer(let_panic(Path(place), "at emoji"), plain_card.max_input_tokens)
        panicking = dataclasses.replace(encoder, tokenizer=tokenizer)
        with over(FakeBackend(), plain_card, panicking) as embedder:
            with pytest.raises(InferenceFailed, match=r"^input\[1025\]: the model's tokenizer"):
                embedder.embed([*["a"] * WINDOW_TEXTS, "a", "\N{GRINNING FACE}"])
            assert len(embedder.embed(["a"])) == 1

    def test_settings_and_names_are_checked_as_those_of_a_command(self) -> None:
        with pytest.raises(SettingError, match="nobody not found"):
            Embedder.open("nobody", models_dir=REPOSITORY / "models")
        with pytest.raises(SettingError, match="threads"):
            Embedder.open(PLAIN, threads=0)
        with pytest.raises(SettingError, match="thread"):
            Embedder.open(PLAIN, thread=1)

    def test_a_file_that_is_missing_is_told(
        self, plain_card: Card, tmp_path: os.PathLike[str]
    ) -> None:
        folder = os.path.join(tmp_path, PLAIN)  # noqa: PTH118
        os.mkdir(folder)  # noqa: PTH102
        with open(os.path.join(folder, "card.toml"), "w") as card:  # noqa: PTH118, PTH123
            card.write((plain_card.folder / "card.toml").read_text())
        with pytest.raises(ModelFileError, match="missing or incomplete"):
            Embedder.open(PLAIN, models_dir=tmp_path)


class TestTheEnd:
    def test_no_thread_is_left(self, plain_card: Card, encoder: Encoder) -> None:
        before = set(threads_of_embedders())
        with over(FakeBackend(), plain_card, encoder) as embedder:
            embedder.embed(["a"])
            assert set(threads_of_embedders()) - before
        assert set(threads_of_embedders()) <= before
        embedder.close()

    @pytest.mark.parametrize(("concurrent_passes", "threads"), [(None, 2), (1, 1)])
    def test_none_waits_for_a_backend_that_computes_one_pass_at_once(
        self, plain_card: Card, encoder: Encoder, concurrent_passes: int | None, threads: int
    ) -> None:
        backend = FakeBackend()
        backend.concurrent_passes = concurrent_passes
        fake = Encoder(encoder.tokenizer, (backend,), FAKE_DIM)
        before = set(threads_of_embedders())
        with Embedder(plain_card, fake, None, Settings(threads=2)) as embedder:
            embedder.embed(["a"])
            started = set(threads_of_embedders()) - before
        assert sum(thread.name.startswith("replica") for thread in started) == threads

    def test_a_closed_one_says_so(self, fake: Embedder) -> None:
        fake.close()
        with pytest.raises(RuntimeError, match="closed"):
            fake.embed(["a"])

    def test_a_call_under_way_elsewhere_ends_when_it_is_closed(
        self, fake: Embedder, backend: FakeBackend
    ) -> None:
        raised: list[BaseException] = []

        def call() -> None:
            try:
                fake.embed(["a"] * 300)
            except BaseException as error:
                raised.append(error)

        backend.gate.clear()
        caller = running(call)
        assert backend.entered.acquire(timeout=30)
        closer = running(fake.close)
        caller.join(30)
        assert isinstance(raised[0], RuntimeError)
        assert "closed" in str(raised[0])
        closer.join(0.2)
        assert closer.is_alive()  # until the worker has come back
        backend.gate.set()
        closer.join(30)
        assert not closer.is_alive()

    def test_closing_again_after_ctrl_c_in_it_waits_for_the_threads(
        self, fake: Embedder, backend: FakeBackend
    ) -> None:
        main = threading.get_ident()
        backend.gate.clear()
        call = fake.begin(embed_one)
        assert backend.entered.acquire(timeout=30)

        def interrupt() -> None:
            call.wait(30)  # main is closing
            signal.pthread_kill(main, signal.SIGINT)

        with interruptible():
            interrupter = running(interrupt)
            with pytest.raises(KeyboardInterrupt):
                fake.close()
            interrupter.join()
        closer = running(fake.close)
        closer.join(0.2)
        assert closer.is_alive()
        backend.gate.set()
        closer.join(30)
        assert not closer.is_alive()

    def test_ctrl_c_takes_the_waiting_texts_with_it_and_the_next_call_is_computed(
        self, fake: Embedder, backend: FakeBackend
    ) -> None:
        at_rest = fake.begin(count_tasks).result()
        backend.gate.clear()

        def interrupt() -> None:
            assert backend.entered.acquire(timeout=30)
            signal.pthread_kill(main, signal.SIGINT)

        main = threading.get_ident()
        with interruptible():
            interrupter = running(interrupt)
            with pytest.raises(KeyboardInterrupt):
                fake.embed(["a b c d e f g h"] * 1000)
            interrupter.join()
        wait_for(lambda: fake.begin(count_tasks).result() == at_rest)  # the engine heard
        backend.gate.set()
        assert len(fake.embed(["a"])) == 1
        assert len(backend.shapes) < 10

    def test_one_that_is_forgotten_ends_with_its_last_reference(
        self, plain_card: Card, encoder: Encoder
    ) -> None:
        before = set(threads_of_embedders())
        forgotten = over(FakeBackend(), plain_card, encoder)
        forgotten.embed(["a"])
        watched = weakref.ref(forgotten)
        del forgotten
        gc.collect()
        assert watched() is None
        wait_for(lambda: set(threads_of_embedders()) <= before)

    @pytest.mark.parametrize("collector", ["engine", "replica-0"])
    def test_one_that_is_collected_in_a_thread_of_its_own_ends_all_the_same(
        self, plain_card: Card, encoder: Encoder, collector: str
    ) -> None:
        def collect() -> None:
            if threading.current_thread().name == collector:
                gc.collect()

        class Collecting(FakeBackend):
            def forward(
                self, sequences: Sequence[TokenIds], *, alone: bool = False
            ) -> NDArray[np.float32]:
                vectors = super().forward(sequences, alone=alone)
                collect()
                return vectors

        async def work(engine: Engine) -> None:
            await embed_one(engine)
            collect()

        before = set(threads_of_embedders())
        backend = Collecting()
        backend.gate.clear()
        forgotten = over(backend, plain_card, encoder)
        watched = weakref.ref(forgotten)
        circle: list[object] = [forgotten]
        circle.append(circle)
        call = forgotten.begin(work)
        assert backend.entered.acquire(timeout=30)
        gc.disable()  # here
        try:
            del forgotten, circle
            assert watched() is not None
            backend.gate.set()
            wait_for(lambda: watched() is None)
            assert call.wait(10)
            wait_for(lambda: set(threads_of_embedders()) <= before)
        finally:
            gc.enable()

    def test_a_program_that_does_not_close_ends_all_the_same(self) -> None:
        code = f"""
from server.offline.embedder import Embedder
embedder = Embedder.open({PLAIN!r}, models_dir={str(REPOSITORY / "models")!r})
print(embedder.embed(["a"] * 2000).shape)
"""
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "(2000, 384)\n", "")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
    def test_in_a_forked_process_it_raises_in_place_of_waiting_for_ever(
        self, fake: Embedder
    ) -> None:
        child = os.fork()
        if not child:
            code = 1
            try:
                fake.embed(["a"])
            except RuntimeError as error:
                fake.close()
                code = 7 if "forked" in str(error) else 1
            finally:  # or it would go on as a second run of the tests
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert len(fake.embed(["a"])) == 1
