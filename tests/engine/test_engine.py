"""The engine with its queue and worker threads, over a forward pass that can be made to fail."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import numpy as np
import pytest

from server.engine.engine import Engine, warm_up
from server.errors import Draining, InferenceFailed, TooManyTokens
from server.inference.backend import Backend
from server.inference.inputs import TextInputs, TokenIdInputs
from server.inference.loader import Encoder
from server.inference.tokenizer import TokenIds, Tokenizer
from tests.fakes import FAKE_DIM, GIVES_NAN, LOSES_ROWS, RAISES, EndlessTokenizer, FakeBackend

MakeEngine = Callable[[Backend], Engine]


@pytest.fixture
async def make_engine(encoder: Encoder) -> AsyncIterator[MakeEngine]:
    engines: list[Engine] = []

    def make(backend: Backend) -> Engine:
        fake = Encoder(encoder.tokenizer, backend, FAKE_DIM)
        engine = Engine(fake, threads=2, max_batch_tokens=64, max_request_tokens=300_000)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def ids(*token_ids: int) -> TokenIds:
    return np.array(token_ids, np.int32)


def random_sequences(count: int) -> list[TokenIds]:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, count)
    return [random.integers(1, 80, length).astype(np.int32) for length in lengths]


async def test_vectors_come_back_in_the_order_of_the_inputs(make_engine: MakeEngine) -> None:
    sequences = random_sequences(200)
    vectors = await make_engine(FakeBackend()).embed(sequences)
    assert vectors.dtype == np.float32
    expected = [[s.sum(), len(s), s[0]] for s in sequences]
    assert vectors.tolist() == expected


async def test_many_requests_at_once_are_not_mixed_up(make_engine: MakeEngine) -> None:
    engine = make_engine(FakeBackend())
    requests = [random_sequences(n) for n in range(1, 60)]
    answers = await asyncio.gather(*map(engine.embed, requests))
    for sequences, vectors in zip(requests, answers, strict=True):
        assert vectors.tolist() == [[s.sum(), len(s), s[0]] for s in sequences]


@pytest.mark.parametrize("guilty_token", [RAISES, GIVES_NAN, LOSES_ROWS])
async def test_only_the_request_with_the_guilty_text_fails(
    make_engine: MakeEngine, guilty_token: int
) -> None:
    backend = FakeBackend()
    engine = make_engine(backend)
    backend.gate.clear()  # let all of them wait, so that they share micro-batches
    good = [asyncio.create_task(engine.embed([ids(n, 2, 3)])) for n in range(1, 20)]
    bad = asyncio.create_task(engine.embed([ids(1, 2, 3), ids(4, guilty_token, 6)]))
    await asyncio.sleep(0)
    backend.gate.set()
    with pytest.raises(InferenceFailed, match=r"input\[1\]"):
        await bad
    for n, task in enumerate(good, start=1):
        assert (await task).tolist() == [[n + 5, 3, n]]


async def test_the_workers_live_on_after_failures(make_engine: MakeEngine) -> None:
    engine = make_engine(FakeBackend())
    for _ in range(5):
        with pytest.raises(InferenceFailed):
            await engine.embed([ids(RAISES)])
    assert (await engine.embed([ids(7)])).tolist() == [[7, 1, 7]]


async def test_out_of_memory_splits_the_micro_batch_and_lowers_the_budget(
    make_engine: MakeEngine,
) -> None:
    backend = FakeBackend(memory_tokens=16)
    engine = make_engine(backend)
    first = await engine.embed([ids(1, 2, 3, 4)] * 64)
    assert first.tolist() == [[10, 4, 1]] * 64
    backend.shapes.clear()
    await engine.embed([ids(1, 2, 3, 4)] * 64)
    assert max(rows * tokens for rows, tokens in backend.shapes) <= 16


async def test_a_cancelled_request_does_not_cost_another_forward_pass(
    make_engine: MakeEngine,
) -> None:
    backend = FakeBackend()
    engine = make_engine(backend)
    backend.gate.clear()
    running = [asyncio.create_task(engine.embed([ids(1)] * 64)) for _ in range(2)]
    await asyncio.to_thread(lambda: [backend.entered.acquire(timeout=10) for _ in range(2)])
    waiting = asyncio.create_task(engine.embed([ids(2, 2)] * 100))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    backend.gate.set()
    await asyncio.gather(*running)
    assert all(tokens == 1 for _, tokens in backend.shapes)


async def test_a_cancelled_request_gives_back_its_tokenizing_thread() -> None:
    tokenizer = EndlessTokenizer()
    encoder = Encoder(cast(Tokenizer, tokenizer), FakeBackend(), FAKE_DIM)
    engine = Engine(encoder, threads=1, max_batch_tokens=64, max_request_tokens=100)
    long = TextInputs(is_list=False, texts=["word " * 1000])
    waiting = asyncio.create_task(
        engine.tokenize(long, prompt="", truncate=True, own_token_ids=False)
    )
    assert await asyncio.to_thread(tokenizer.entered.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.to_thread(tokenizer.stopped.wait, 10)
    engine.close()


async def test_a_request_with_several_guilty_texts_fails_once(make_engine: MakeEngine) -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    engine = make_engine(FakeBackend())
    with pytest.raises(InferenceFailed):
        await engine.embed([ids(RAISES), ids(1), ids(GIVES_NAN), ids(RAISES)])
    assert (await engine.embed([ids(7)])).tolist() == [[7, 1, 7]]
    assert complaints == []


async def test_closing_answers_what_waits(make_engine: MakeEngine) -> None:
    backend = FakeBackend()
    engine = make_engine(backend)
    backend.gate.clear()
    requests = [asyncio.create_task(engine.embed([ids(1)] * 64)) for _ in range(8)]
    await asyncio.sleep(0)
    engine.close()
    backend.gate.set()
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert any(isinstance(outcome, Draining) for outcome in outcomes)
    assert all(isinstance(outcome, Draining | np.ndarray) for outcome in outcomes)


async def test_no_micro_batch_is_larger_than_the_budget(make_engine: MakeEngine) -> None:
    backend = FakeBackend()
    await make_engine(backend).embed(random_sequences(300))
    assert all(rows * tokens <= 64 or rows == 1 for rows, tokens in backend.shapes)


async def test_large_and_small_texts_are_tokenised_alike(encoder: Encoder) -> None:
    engine = Engine(encoder, threads=1, max_batch_tokens=512, max_request_tokens=300_000)
    texts = ["a short text", "word " * 200]
    inputs = TextInputs(is_list=True, texts=texts * 20)
    in_thread = await engine.tokenize(inputs, prompt="", truncate=False, own_token_ids=False)
    for text, token_ids in zip(itertools.cycle(texts), in_thread, strict=False):
        alone = TextInputs(is_list=False, texts=[text])
        (inline,) = await engine.tokenize(alone, prompt="", truncate=False, own_token_ids=False)
        assert inline.tolist() == token_ids.tolist()
    engine.close()


async def test_openai_token_ids_mean_the_text_they_stand_for(encoder: Encoder) -> None:
    engine = Engine(encoder, threads=1, max_batch_tokens=512, max_request_tokens=300_000)
    as_ids = TokenIdInputs(is_list=False, token_ids=[[9906, 11, 1917]])  # "Hello, world"
    as_text = TextInputs(is_list=False, texts=["Hello, world"])
    (from_ids,) = await engine.tokenize(as_ids, prompt="", truncate=False, own_token_ids=False)
    (from_text,) = await engine.tokenize(as_text, prompt="", truncate=False, own_token_ids=False)
    assert from_ids.tolist() == from_text.tolist()
    (own,) = await engine.tokenize(
        TokenIdInputs(is_list=False, token_ids=[from_text.tolist()]),
        prompt="",
        truncate=False,
        own_token_ids=True,
    )
    assert own.tolist() == from_text.tolist()
    engine.close()


async def test_too_many_openai_ids_are_refused_before_they_are_decoded(encoder: Encoder) -> None:
    engine = Engine(encoder, threads=1, max_batch_tokens=512, max_request_tokens=100)
    unknown = [10**9] * 60  # decoding would complain of these
    inputs = TokenIdInputs(is_list=True, token_ids=[unknown, unknown])
    with pytest.raises(TooManyTokens, match=r"input\[1\]"):
        await engine.tokenize(inputs, prompt="", truncate=False, own_token_ids=False)
    engine.close()


def test_warming_up_runs_forward_passes(encoder: Encoder) -> None:
    backend = FakeBackend()
    warm_up(Encoder(encoder.tokenizer, backend, FAKE_DIM))
    assert backend.shapes
