"""The engine with its queue and worker threads, over a forward pass that can be made to fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator
from typing import Any, Protocol, cast

import numpy as np
import pytest

from server.engine import client_patience
from server.engine.engine import Engine
from server.engine.patience import Patience
from server.errors import (
    Draining,
    InferenceFailed,
    Overloaded,
    TokenWithoutEmbedding,
    TooManyTokens,
)
from server.inference.backend import Backend, TokenIds
from server.inference.inputs import TextInputs, TokenIdInputs
from server.inference.loader import Encoder
from server.inference.tokenizer import Tokenizer
from server.metrics import EngineMetrics, Metrics
from tests.engine import (
    Clock,
    different,
    embed,
    embedded,
    ids,
    let_pass,
    metrics_of_an_engine,
    start_engine,
)
from tests.fakes import (
    FAKE_DIM,
    GIVES_NAN,
    KILLS_THREAD,
    LOSES_ROWS,
    RAISES,
    EndlessTokenizer,
    FakeBackend,
)
from tests.metrics_page import MetricsPage
from tests.waiting import wait_for


class MakeEngine(Protocol):
    def __call__(self, backend: Backend, metrics: EngineMetrics | None = None) -> Engine: ...


@pytest.fixture
async def make_engine(encoder: Encoder) -> AsyncIterator[MakeEngine]:
    engines: list[Engine] = []

    def make(backend: Backend, metrics: EngineMetrics | None = None) -> Engine:
        fake = Encoder(encoder.tokenizer, (backend,), FAKE_DIM)
        engine = start_engine(fake, metrics, threads=2, max_batch_tokens=64)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def random_sequences(count: int) -> list[TokenIds]:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, count)
    return [random.integers(1, 80, length).astype(np.int32) for length in lengths]


async def test_a_device_that_is_broken_leaves_the_work_to_the_others(encoder: Encoder) -> None:
    metrics, of_engine = metrics_of_an_engine()
    broken, healthy = FakeBackend(), FakeBackend()
    broken.broken.set()
    engine = start_engine(
        Encoder(encoder.tokenizer, (broken, healthy), FAKE_DIM),
        of_engine,
        patience=Patience(probe_interval_s=0.01),
    )
    failed = 0
    while value(metrics, "replicas_alive") == 2:
        with contextlib.suppress(InferenceFailed):
            await asyncio.gather(*(embed(engine, [ids(5)]) for _ in range(4)))
            continue
        failed += 1
        assert failed < 100
    assert engine.sound
    for _ in range(50):
        await asyncio.gather(*(embed(engine, [ids(5)]) for _ in range(4)))
    broken.broken.clear()
    await asyncio.to_thread(wait_for, lambda: value(metrics, "replicas_alive") == 2)
    engine.close()


async def test_vectors_come_back_in_the_order_of_the_inputs(make_engine: MakeEngine) -> None:
    sequences = random_sequences(200)
    vectors = await embed(make_engine(FakeBackend()), sequences)
    assert vectors.dtype == np.float32
    expected = [[s.sum(), len(s), s[0]] for s in sequences]
    assert vectors.tolist() == expected


@pytest.mark.parametrize("different_ones", [1, 2, 700, 2_048])
async def test_equal_texts_are_computed_once_and_each_has_the_vector(
    make_engine: MakeEngine, different_ones: int
) -> None:
    metrics, of_engine = metrics_of_an_engine()
    some = random_sequences(5 * different_ones)
    distinct = list({one.tobytes(): one for one in some}.values())[:different_ones]
    assert len(distinct) == different_ones
    random = np.random.default_rng(1)
    # Each at least once, in any order.
    drawn = [*range(different_ones), *random.integers(0, different_ones, 2_048 - different_ones)]
    sequences = [distinct[number] for number in random.permutation(drawn)]
    vectors = await embed(make_engine(FakeBackend(), of_engine), sequences)
    assert vectors.tolist() == [[s.sum(), len(s), s[0]] for s in sequences]
    vectors[0] = -1  # the rows are of their own
    assert (vectors[1:] >= 0).all()
    assert value(metrics, "computed_tokens_total") == sum(map(len, distinct))
    assert value(metrics, "micro_batch_sequences_sum") == different_ones
    assert value(metrics, "repeated_sequences_total") == 2_048 - different_ones


async def test_a_text_that_is_there_twice_fails_by_its_first_position(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(FakeBackend())
    with pytest.raises(InferenceFailed, match=r"input\[3\]"):
        await embed(engine, [ids(1), ids(1), ids(2), ids(RAISES), ids(1), ids(RAISES)])


async def test_equal_texts_wait_once_in_the_queue_and_count_once_for_the_admission(
    make_engine: MakeEngine,
) -> None:
    metrics, of_engine = metrics_of_an_engine()
    backend = FakeBackend()
    engine = make_engine(backend, of_engine)
    backend.gate.clear()
    blocking = asyncio.create_task(embed(engine, different(2, 60)))
    await entered(backend, 2)
    request = asyncio.create_task(embed(engine, [*different(3, 10)] * 5))
    await asyncio.sleep(0)
    assert value(metrics, "queue_sequences") == 3
    assert value(metrics, "queue_tokens") == 30
    assert value(metrics, "admitted_tokens") == 2 * 60 + 30
    backend.gate.set()
    assert len(await request) == 15
    await blocking
    assert value(metrics, "admitted_tokens") == 0


async def test_many_requests_at_once_are_not_mixed_up(make_engine: MakeEngine) -> None:
    engine = make_engine(FakeBackend())
    requests = [random_sequences(n) for n in range(1, 60)]
    answers = await asyncio.gather(*(embed(engine, request) for request in requests))
    for sequences, vectors in zip(requests, answers, strict=True):
        assert vectors.tolist() == [[s.sum(), len(s), s[0]] for s in sequences]


@pytest.mark.parametrize("guilty_token", [RAISES, GIVES_NAN, LOSES_ROWS])
async def test_only_the_request_with_the_guilty_text_fails(
    make_engine: MakeEngine, guilty_token: int
) -> None:
    backend = FakeBackend()
    engine = make_engine(backend)
    backend.gate.clear()  # let all of them wait, so that they share micro-batches
    good = [asyncio.create_task(embed(engine, [ids(n, 2, 3)])) for n in range(1, 20)]
    bad = asyncio.create_task(embed(engine, [ids(1, 2, 3), ids(4, guilty_token, 6)]))
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
            await embed(engine, [ids(RAISES)])
    assert (await embed(engine, [ids(7)])).tolist() == [[7, 1, 7]]


async def test_out_of_memory_splits_the_micro_batch_and_lowers_the_budget(
    make_engine: MakeEngine,
) -> None:
    backend = FakeBackend(memory_tokens=16)
    engine = make_engine(backend)
    first = await embed(engine, different(64, 4))
    assert first.tolist() == [[100 + n + 3, 4, 100 + n] for n in range(64)]
    backend.shapes.clear()
    await embed(engine, different(64, 4))
    assert max(rows * tokens for rows, tokens in backend.shapes) <= 16


async def test_a_text_that_does_not_fit_alone_makes_no_other_micro_batch_smaller(
    make_engine: MakeEngine,
) -> None:
    backend = FakeBackend(memory_tokens=64)
    engine = make_engine(backend)
    with pytest.raises(InferenceFailed):
        await embed(engine, [ids(*[1] * 65)])
    backend.shapes.clear()
    await embed(engine, different(64, 4))
    assert max(rows * tokens for rows, tokens in backend.shapes) == 64


async def test_a_cancelled_request_does_not_cost_another_forward_pass(
    make_engine: MakeEngine,
) -> None:
    backend = FakeBackend()
    engine = make_engine(backend)
    backend.gate.clear()
    running = [asyncio.create_task(embed(engine, different(64))) for _ in range(2)]
    await asyncio.to_thread(lambda: [backend.entered.acquire(timeout=10) for _ in range(2)])
    waiting = asyncio.create_task(embed(engine, different(100, 2)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    backend.gate.set()
    await asyncio.gather(*running)
    assert all(tokens == 1 for _, tokens in backend.shapes)


@pytest.mark.parametrize(("why", "is_told"), [(client_patience.CLIENT_LEFT, True), (None, False)])
async def test_only_a_key_whose_client_has_left_is_not_asked_to_wait_as_long_again(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, why: str | None, is_told: bool
) -> None:
    monkeypatch.setattr(client_patience, "SHORTEST_S", 0.0)
    backend = FakeBackend()
    engine = make_engine(backend)
    backend.gate.clear()
    running = [asyncio.create_task(embed(engine, different(64), "bulk")) for _ in range(2)]
    await asyncio.to_thread(lambda: [backend.entered.acquire(timeout=10) for _ in range(2)])
    waiting = asyncio.create_task(embed(engine, different(100, 2), "leaves"))
    await asyncio.sleep(0)
    waiting.cancel(why)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    tasks = [
        asyncio.create_task(embed(engine, different(100, 2), key)) for key in ("leaves", "stays")
    ]
    await asyncio.sleep(0)
    backend.gate.set()
    again, other = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(again, Overloaded) is is_told
    assert len(other) == 100  # type: ignore[arg-type]
    await asyncio.gather(*running)


async def test_a_cancelled_request_gives_back_its_tokenizing_thread() -> None:
    tokenizer = EndlessTokenizer()
    encoder = Encoder(cast(Tokenizer, tokenizer), (FakeBackend(),), FAKE_DIM)
    engine = start_engine(encoder, max_request_tokens=100)
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
        await embed(engine, [ids(RAISES), ids(1), ids(GIVES_NAN), ids(RAISES)])
    assert (await embed(engine, [ids(7)])).tolist() == [[7, 1, 7]]
    assert complaints == []


async def test_closing_answers_what_waits(make_engine: MakeEngine) -> None:
    backend = FakeBackend()
    engine = make_engine(backend)
    backend.gate.clear()
    requests = [asyncio.create_task(embed(engine, different(64))) for _ in range(8)]
    await asyncio.sleep(0)
    engine.close()
    backend.gate.set()
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert any(isinstance(outcome, Draining) for outcome in outcomes)
    assert all(isinstance(outcome, Draining | np.ndarray) for outcome in outcomes)


async def test_no_micro_batch_is_larger_than_the_budget(make_engine: MakeEngine) -> None:
    backend = FakeBackend()
    await embed(make_engine(backend), random_sequences(300))
    assert all(rows * tokens <= 64 or rows == 1 for rows, tokens in backend.shapes)


async def test_large_and_small_texts_are_tokenised_alike(encoder: Encoder) -> None:
    engine = start_engine(encoder)
    texts = ["a short text", "word " * 200]
    inputs = TextInputs(is_list=True, texts=texts * 20)
    in_thread = await engine.tokenize(inputs, prompt="", truncate=False, own_token_ids=False)
    for text, token_ids in zip(itertools.cycle(texts), in_thread, strict=False):
        alone = TextInputs(is_list=False, texts=[text])
        (inline,) = await engine.tokenize(alone, prompt="", truncate=False, own_token_ids=False)
        assert inline.tolist() == token_ids.tolist()
    engine.close()


async def test_openai_token_ids_mean_the_text_they_stand_for(encoder: Encoder) -> None:
    engine = start_engine(encoder)
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
    engine = start_engine(encoder, max_request_tokens=100)
    unknown = [10**9] * 60  # decoding would complain of these
    inputs = TokenIdInputs(is_list=True, token_ids=[unknown, unknown])
    with pytest.raises(TooManyTokens, match=r"input\[1\]"):
        await engine.tokenize(inputs, prompt="", truncate=False, own_token_ids=False)
    engine.close()


def value(metrics: Metrics, name: str) -> float:
    return MetricsPage(metrics.page()).value(name, model="model")


def entered(backend: FakeBackend, passes: int) -> asyncio.Future[None]:
    """Done when this many forward passes have begun."""

    def acquire() -> None:
        for _ in range(passes):
            assert backend.entered.acquire(timeout=10)

    return asyncio.ensure_future(asyncio.to_thread(acquire))


async def computed_tokens(metrics: Metrics, tokens: int) -> None:
    """Return when the event loop knows of so many."""
    await asyncio.to_thread(wait_for, lambda: value(metrics, "computed_tokens_total") >= tokens)


async def test_the_time_before_and_the_time_in_the_workers_are_told_apart(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    backend = FakeBackend()
    engine = make_engine(backend)
    backend.gate.clear()
    first = [asyncio.create_task(embedded(engine, different(64))) for _ in range(2)]
    await entered(backend, 2)
    second = asyncio.create_task(embedded(engine, [ids(2, 2)]))
    await asyncio.sleep(0)
    clock.now_s += 0.25
    backend.gate.set()
    computed, waited = await asyncio.gather(*first), await second
    assert [(one.wait_s, one.compute_s) for one in computed] == [(0, 0.25)] * 2
    assert (waited.wait_s, waited.compute_s) == (0.25, 0)


async def test_tokens_are_given_back_however_a_request_ends(make_engine: MakeEngine) -> None:
    metrics, of_engine = metrics_of_an_engine()
    backend = FakeBackend()
    engine = make_engine(backend, of_engine)
    backend.gate.clear()
    successes = [asyncio.create_task(embed(engine, random_sequences(30))) for _ in range(3)]
    failure = asyncio.create_task(embed(engine, [ids(1, 2), ids(RAISES, 3), *different(90)]))
    killer = asyncio.create_task(embed(engine, [ids(KILLS_THREAD, 1, 1, 1)]))
    abandoned = [asyncio.create_task(embed(engine, random_sequences(30))) for _ in range(3)]
    await entered(backend, 2)
    assert value(metrics, "admitted_tokens") > 500
    for task in abandoned:
        task.cancel()
    await asyncio.gather(*abandoned, return_exceptions=True)
    backend.gate.set()
    await asyncio.gather(*successes, failure, killer, return_exceptions=True)
    assert value(metrics, "admitted_tokens") == 0
    assert value(metrics, "queue_tokens") == 0
    assert value(metrics, "queue_sequences") == 0


async def test_tokens_are_given_back_as_they_are_computed_not_only_at_the_end(
    make_engine: MakeEngine,
) -> None:
    metrics, of_engine = metrics_of_an_engine()
    backend = FakeBackend()
    backend.turnstile = threading.Semaphore(0)
    engine = make_engine(backend, of_engine)
    request = asyncio.create_task(embed(engine, different(10, 64)))
    await entered(backend, 2)
    for computed in range(9):
        assert value(metrics, "admitted_tokens") == 64 * (10 - computed)
        assert value(metrics, "queue_tokens") == 64 * max(8 - computed, 0)
        assert value(metrics, "queue_sequences") == max(8 - computed, 0)
        backend.turnstile.release()
        if computed < 8:
            await entered(backend, 1)  # the next one has begun
        await computed_tokens(metrics, 64 * (computed + 1))
        assert not request.done()
    backend.turnstile.release()
    assert len(await request) == 10
    assert value(metrics, "admitted_tokens") == 0


async def test_an_estimate_is_replaced_once_the_tokens_are_counted(
    make_engine: MakeEngine,
) -> None:
    metrics, of_engine = metrics_of_an_engine()
    backend = FakeBackend()
    engine = make_engine(backend, of_engine)
    inputs = TextInputs(is_list=False, texts=["word " * 80])
    backend.gate.clear()
    async with engine.admit(inputs, "key") as ticket:
        assert ticket.tokens == value(metrics, "admitted_tokens") == 100  # a quarter of 400
        token_ids = await engine.tokenize(inputs, prompt="", truncate=False, own_token_ids=False)
        request = asyncio.create_task(engine.embed(token_ids, ticket))
        await entered(backend, 1)
        assert value(metrics, "admitted_tokens") == len(token_ids[0]) == 82
        backend.gate.set()
        await request
    assert value(metrics, "admitted_tokens") == 0


async def test_estimates_follow_the_texts_there_are(encoder: Encoder) -> None:
    engine = start_engine(encoder)
    inputs = TextInputs(is_list=False, texts=["日本語" * 60])

    async def estimate() -> int:
        async with engine.admit(inputs, "key") as ticket:
            return ticket.tokens

    assert await estimate() == 45
    for _ in range(60):
        (token_ids,) = await engine.tokenize(inputs, prompt="", truncate=False, own_token_ids=False)
    assert abs(await estimate() - len(token_ids)) <= 0.1 * len(token_ids)
    engine.close()


@pytest.mark.parametrize(
    ("inputs", "estimate"),
    [
        (TextInputs(is_list=True, texts=["x"] * 7), 7),  # at least a token each
        (TextInputs(is_list=True, texts=["x" * 1_000_000, "y"]), 2 * 256),  # what the model reads
        (TextInputs(is_list=True, texts=["x" * 1_000] * 10), 1_000),  # what a request may hold
        (TokenIdInputs(is_list=True, token_ids=[[1] * 30, [2]]), 31),
    ],
)
async def test_an_estimate_is_never_outside_of_what_is_possible(
    encoder: Encoder, inputs: TextInputs | TokenIdInputs, estimate: int
) -> None:
    engine = start_engine(encoder, max_request_tokens=1_000)
    assert encoder.tokenizer.max_input_tokens == 256
    async with engine.admit(inputs, "key") as ticket:
        assert ticket.tokens == estimate
    engine.close()


async def test_what_the_queue_cannot_hold_is_refused_and_let_in_later(encoder: Encoder) -> None:
    backend = FakeBackend()
    engine = start_engine(Encoder(encoder.tokenizer, (backend,), FAKE_DIM), max_queue_tokens=10)
    backend.gate.clear()
    first = asyncio.create_task(embed(engine, different(3, 3)))
    await entered(backend, 1)
    with pytest.raises(Overloaded):
        await embed(engine, [ids(1, 2)])
    second = asyncio.create_task(embed(engine, [ids(5)]))
    backend.gate.set()
    await first
    assert (await second).tolist() == [[5, 1, 5]]
    assert (await embed(engine, [ids(1, 2)])).tolist() == [[3, 2, 1]]
    engine.close()


async def test_what_the_metrics_tell_of_micro_batches_adds_up(make_engine: MakeEngine) -> None:
    metrics, of_engine = metrics_of_an_engine()
    backend = FakeBackend()
    engine = make_engine(backend, of_engine)
    requests = [random_sequences(count) for count in (40, 7, 1, 90)]
    await asyncio.gather(*(embed(engine, request) for request in requests))
    tokens = sum(len(one) for request in requests for one in request)
    assert value(metrics, "computed_tokens_total") == tokens
    assert value(metrics, "micro_batch_sequences_sum") == 40 + 7 + 1 + 90
    assert value(metrics, "micro_batch_sequences_count") == len(backend.shapes)
    assert value(metrics, "micro_batch_seconds_count") == len(backend.shapes)
    assert value(metrics, "micro_batch_seconds_sum") > 0
    padded = sum(rows * longest for rows, longest in backend.shapes)
    assert value(metrics, "micro_batch_tokens_sum") == padded
    assert value(metrics, "padding_tokens_total") == padded - tokens > 0
    assert value(metrics, "sequence_failures_total") == 0


async def test_each_sequence_that_fails_is_counted(make_engine: MakeEngine) -> None:
    metrics, of_engine = metrics_of_an_engine()
    engine = make_engine(FakeBackend(), of_engine)
    for guilty in (RAISES, GIVES_NAN, LOSES_ROWS):
        with pytest.raises(InferenceFailed):
            await embed(engine, [ids(guilty)])
    assert value(metrics, "sequence_failures_total") == 3


async def test_the_speed_told_is_that_of_all_workers_together(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    metrics, of_engine = metrics_of_an_engine()
    backend = FakeBackend()
    fake = Encoder(encoder.tokenizer, (backend,), FAKE_DIM)
    engine = start_engine(fake, of_engine, threads=2, max_batch_tokens=100)
    assert value(metrics, "tokens_per_second") == 2_000  # a guess
    for _ in range(3):
        backend.gate.clear()
        request = asyncio.create_task(embed(engine, different(2, 100)))
        await entered(backend, 2)
        clock.now_s += 0.2
        backend.gate.set()
        await request
    of_one = value(metrics, "computed_tokens_total") / value(metrics, "micro_batch_seconds_sum")
    assert 0.8 < value(metrics, "tokens_per_second") / (2 * of_one) < 1.25
    engine.close()


async def test_a_pass_that_had_the_machine_to_itself_counts_once(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    metrics, of_engine = metrics_of_an_engine()
    backend = FakeBackend()
    engine = start_engine(Encoder(encoder.tokenizer, (backend,), FAKE_DIM), of_engine, threads=2)
    for _ in range(5):
        backend.gate.clear()
        request = asyncio.create_task(embed(engine, [ids(*[1] * 100)]))
        await entered(backend, 1)
        clock.now_s += 0.2
        backend.gate.set()
        await request
    engine.close()
    assert True in backend.alone
    # A worker that has just started, or has not come back yet, may compute: then it is not alone.
    tokens = sum(100 if alone else 2 * 100 for alone in backend.alone)
    speed = tokens / value(metrics, "micro_batch_seconds_sum")
    assert 0.8 < value(metrics, "tokens_per_second") / speed < 1.5  # the first guess still counts


async def test_failures_tell_nothing_of_the_speed(encoder: Encoder) -> None:
    metrics, of_engine = metrics_of_an_engine()
    engine = start_engine(Encoder(encoder.tokenizer, (FakeBackend(),), FAKE_DIM), of_engine)
    before = value(metrics, "tokens_per_second")
    for _ in range(3):
        with pytest.raises(InferenceFailed):
            await embed(engine, [ids(RAISES)])
    assert value(metrics, "sequence_failures_total") == 3
    assert value(metrics, "tokens_per_second") == before
    engine.close()


async def test_a_worker_that_dies_answers_its_request_and_is_replaced(
    encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, of_engine = metrics_of_an_engine()
    engine = start_engine(Encoder(encoder.tokenizer, (FakeBackend(),), FAKE_DIM), of_engine)
    assert engine.sound
    for deaths in (1, 2):
        with pytest.raises(InferenceFailed):
            await embed(engine, [ids(KILLS_THREAD)])
        async with asyncio.timeout(20):  # waits for the new one
            assert (await embed(engine, [ids(7)])).tolist() == [[7, 1, 7]]
        assert value(metrics, "replica_restarts_total") == deaths
        assert value(metrics, "replicas_alive") == 1
        assert engine.sound
    assert caplog.text.count("replica-0 died") == 2
    engine.close()
    await asyncio.to_thread(engine.join)


async def test_while_every_worker_is_dead_the_engine_is_not_sound(encoder: Encoder) -> None:
    metrics, of_engine = metrics_of_an_engine()
    fake = Encoder(encoder.tokenizer, (FakeBackend(),), FAKE_DIM)
    patience = Patience(restart_delay_s=3600)
    engine = start_engine(fake, of_engine, threads=2, patience=patience)
    for alive in (1, 0):
        assert engine.sound
        with pytest.raises(InferenceFailed):
            await embed(engine, [ids(KILLS_THREAD)])
        await asyncio.to_thread(
            wait_for,
            lambda: value(metrics, "replicas_alive") == alive,  # noqa: B023
        )
    assert not engine.sound
    engine.close()


async def test_a_worker_that_dies_during_the_drain_is_not_replaced(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, of_engine = metrics_of_an_engine()
    backend = FakeBackend()
    engine = start_engine(Encoder(encoder.tokenizer, (backend,), FAKE_DIM), of_engine)
    backend.gate.clear()
    request = asyncio.create_task(embed(engine, [ids(KILLS_THREAD)]))
    await entered(backend, 1)
    engine.close()
    backend.gate.set()
    with pytest.raises(InferenceFailed):
        await request
    await asyncio.to_thread(engine.join)
    let_pass(60, monkeypatch)
    for _ in range(5):
        await asyncio.sleep(0)
    assert value(metrics, "replica_restarts_total") == 0
    assert value(metrics, "replicas_alive") == 0


async def test_a_token_that_the_weights_lack_is_refused_before_anything_is_computed(
    encoder: Encoder,
) -> None:
    backend = FakeBackend()
    engine = start_engine(Encoder(encoder.tokenizer, (backend,), FAKE_DIM, num_embeddings=80))
    with pytest.raises(
        TokenWithoutEmbedding, match=r"^input\[1\] holds .* \(token id 80\)"
    ) as caught:
        await embed(engine, [ids(5, 79), ids(7, 80), ids(81)])
    assert caught.value.row == 1
    with pytest.raises(TokenWithoutEmbedding, match=r"^input\[2\] holds .* \(token id 80\)"):
        await embed(engine, [ids(5), ids(), ids(80)])
    assert backend.shapes == []
    assert len(await embed(engine, [ids(5, 79)])) == 1
    engine.close()
