"""A front end's application over the engine process's side, both in this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from server.access import access
from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import Limits
from server.catalog.card import Card
from server.engine.interface import ModelState, Phase
from server.engine.patience import Patience
from server.engine.replica import FAILURES_BEFORE_PROBE
from server.engine.request_tokenizer import RequestTokenizer
from server.errors import CardError, Draining, ModelLoadError
from server.frontends import engine_service
from server.frontends.channel import Channel
from server.frontends.engine_service import FrontEndLink
from server.frontends.front_end import registry_of
from server.frontends.messages import (
    Admit,
    Drain,
    Embed,
    EngineState,
    Load,
    Message,
    Question,
    Ready,
    TakeIfFits,
    Welcome,
)
from server.frontends.remote_counters import RemoteCounters
from server.inference.inputs import Inputs
from server.settings import Settings
from tests.conftest import PLAIN, AppOver, client_of
from tests.different_texts import different_ids, different_texts
from tests.fakes import GIVES_NAN, RAISES, FakeBackend
from tests.frontends.conftest import Split, SplitOver, welcomed
from tests.waiting import until

OWN_IDS: dict[str, Any] = {"model_token_ids": [PLAIN]}


def asked(*token_ids: int, **more: Any) -> dict[str, Any]:
    return {"model": PLAIN, "input": list(token_ids), **more}


async def post(client: httpx.AsyncClient, body: dict[str, Any], key: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return await client.post("/v1/embeddings", json=body, headers=headers)


def told(answer: httpx.Response) -> tuple[int, Any, str | None]:
    """What an answer says that does not depend on the request's number."""
    return answer.status_code, answer.json(), answer.headers.get("retry-after")


QUESTIONS: list[dict[str, Any]] = [
    asked(1, 2, 3),
    {"model": PLAIN, "input": [[5], [7, 8], [9] * 200]},
    {"model": PLAIN, "input": ["a text", "another one"], "encoding_format": "base64"},
    {"model": PLAIN, "input": "long " * 5000, "truncate": True},
    {"model": PLAIN, "input": "long " * 5000},
    {"model": PLAIN, "input": ["x " * 200] * 50, "truncate": True},
    asked(1, 999_999),
    asked(1, dimensions=2),
    asked(RAISES),
    {"model": PLAIN, "input": [[1], [GIVES_NAN], [2]]},
    {"model": "unknown", "input": "x"},
    {"model": PLAIN, "input": []},
]


@pytest.mark.parametrize("body", QUESTIONS, ids=range(len(QUESTIONS)))
async def test_the_answer_is_that_of_one_process(
    split_over: SplitOver, app_over: AppOver, body: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {**OWN_IDS, "max_request_tokens": 5_000}
    split = await split_over(FakeBackend(), **settings)
    one = await app_over(FakeBackend(), **settings)
    async with split.client as client, client_of(one) as other:
        answer, expected = await post(client, body), await post(other, body)
    assert told(answer) == told(expected)


async def test_too_much_work_is_refused_by_its_exact_tokens(split_over: SplitOver) -> None:
    backend = FakeBackend()
    split = await split_over(backend, **OWN_IDS, max_queue_tokens=10)
    backend.gate.clear()
    async with split.client as client:
        waiting = asyncio.create_task(post(client, asked(*range(1, 7))))
        await until(lambda: len(backend.shapes) == 2)  # one was made at the start
        fitting = asyncio.create_task(post(client, asked(1, 2, 3, 4)))
        await until(lambda: admitted(split) == 10)
        refused = await post(client, asked(1))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_overloaded")
        assert "10 tokens are waiting and at most 10 may" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        backend.gate.set()
        assert (await waiting).status_code == (await fitting).status_code == 200
    assert admitted(split) == 0


def admitted(split: Split) -> float:
    found = [f for f in split.metrics.families() if f.name == "embedding_server_admitted_tokens"]
    return sum(sample.value for family in found for sample in family.samples)


async def test_each_key_has_a_share_of_its_own(split_over: SplitOver) -> None:
    backend = FakeBackend()
    split = await split_over(
        backend, **OWN_IDS, api_key=["sk-one", "sk-other"], max_batch_tokens=200
    )
    backend.gate.clear()
    async with split.client as client:
        answers = []
        for key, length in [*[("sk-one", 100)] * 4, ("sk-other", 150)]:
            before = admitted(split)
            body = {"model": PLAIN, "input": different_ids(3, length)}
            answers.append(asyncio.create_task(post(client, body, key)))
            await until(lambda: admitted(split) == before + 3 * length)  # noqa: B023
        await until(lambda: len(backend.shapes) == 2)  # one was made at the start
        backend.gate.set()
        assert [(await answer).status_code for answer in answers] == [200] * 5
    # The other key's turn comes next, though what came before it fills five micro-batches more.
    assert [tokens for _, tokens in backend.shapes[1:4]].count(150) >= 1
    assert admitted(split) == 0


def large() -> dict[str, Any]:
    """A request that takes long to be tokenised."""
    return {"model": PLAIN, "input": different_texts(25, 200)}


class Tokenizing:
    """Counts what front ends tokenise; `gate` holds it up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = 0
        self.gate = asyncio.Event()
        self.gate.set()
        tokenize = RequestTokenizer.tokenize

        async def counted(tokenizer: RequestTokenizer, inputs: Inputs, **how: Any) -> Any:
            self.requests += 1
            await self.gate.wait()
            return await tokenize(tokenizer, inputs, **how)

        monkeypatch.setattr(RequestTokenizer, "tokenize", counted)


async def test_a_flood_of_large_requests_to_two_front_ends_is_refused_untokenised(
    split_over: SplitOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizing = Tokenizing(monkeypatch)
    backend = FakeBackend()
    split = await split_over(backend, max_queue_tokens=6_000, max_request_tokens=6_000)
    other = await split.another_app()
    backend.gate.clear()
    async with split.client as client, client_of(other) as other_client:
        first = asyncio.create_task(post(client, large()))
        await until(lambda: tokenizing.requests == 1)
        await until(lambda: admitted(split) > 0)
        flood = await asyncio.gather(*(post(one, large()) for one in [client, other_client] * 20))
        assert {answer.status_code for answer in flood} == {503}
        assert {answer.json()["error"]["code"] for answer in flood} == {"server_overloaded"}
        assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in flood)
        assert tokenizing.requests == 1
        backend.gate.set()
        assert (await first).status_code == 200
        for one in (client, other_client):
            assert (await post(one, large())).status_code == 200
    await until(lambda: nothing_is_held(split))


async def test_the_large_requests_of_all_front_ends_are_let_in_by_one_sum(
    split_over: SplitOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizing = Tokenizing(monkeypatch)
    tokenizing.gate.clear()
    split = await split_over(FakeBackend(), max_queue_tokens=12_000, max_request_tokens=6_000)
    other = await split.another_app()
    async with split.client as client, client_of(other) as other_client:
        asking = [asyncio.create_task(post(one, large())) for one in [client, other_client] * 5]
        await until(lambda: len([one for one in asking if one.done()]) == 8)
        assert tokenizing.requests == 2
        tokenizing.gate.set()
        answers = await asyncio.gather(*asking)
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [503] * 8
    await until(lambda: nothing_is_held(split))


def nothing_is_held(split: Split) -> bool:
    """No front end's request has a ticket, keeps a model in memory or counts as queued."""
    held = [ticket for link in split.links for ticket in link.tickets]
    return not held and admitted(split) == 0 and split.models.in_flight == 0


@pytest.mark.parametrize("after", ["asking", "being let in"])
async def test_a_large_request_that_is_cancelled_gives_its_ticket_back(
    split_over: SplitOver, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    tokenizing = Tokenizing(monkeypatch)
    tokenizing.gate.clear()
    split = await split_over(FakeBackend())
    async with split.client as client:
        for turns in range(40):
            leaving = asyncio.create_task(post(client, large()))
            if after == "asking":  # at any point on the way there and back
                await until(lambda: split.remote.in_flight > 0)
                for _ in range(turns):
                    await asyncio.sleep(0)
            else:
                await until(lambda: admitted(split) > 0)
            leaving.cancel()
            await asyncio.wait([leaving])
            await until(lambda: nothing_is_held(split))
        tokenizing.gate.set()
        assert (await post(client, large())).status_code == 200


async def test_a_large_request_that_is_wrong_gives_its_ticket_back(split_over: SplitOver) -> None:
    split = await split_over(FakeBackend())
    async with split.client as client:
        wrong = await post(client, {"model": PLAIN, "input": "word " * 5_000})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "input")
    await until(lambda: nothing_is_held(split))


async def test_a_lost_front_end_gives_its_tickets_back(
    split_over: SplitOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizing = Tokenizing(monkeypatch)
    tokenizing.gate.clear()
    split = await split_over(FakeBackend())
    async with split.client as client:
        answers = [asyncio.create_task(post(client, large())) for _ in range(5)]
        await until(lambda: tokenizing.requests == 5)
        assert len(split.link.tickets) == 5
        split.link.channel.abort()
        await until(lambda: nothing_is_held(split))
        tokenizing.gate.set()
        codes = [(await answer).json()["error"]["code"] for answer in answers]
        assert codes == ["server_draining"] * 5


async def test_a_ticket_keeps_its_model_in_memory(
    split_over: SplitOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizing = Tokenizing(monkeypatch)
    tokenizing.gate.clear()
    split = await split_over(FakeBackend(), lazy=True, unload_after_s=0.05)
    async with split.client as client:
        answer = asyncio.create_task(post(client, large()))
        await until(lambda: tokenizing.requests == 1)
        await asyncio.sleep(0.2)
        assert split.told().loaded
        tokenizing.gate.set()
        assert (await answer).status_code == 200
        await until(lambda: not split.told().loaded)


async def test_who_leaves_takes_the_waiting_work_along(split_over: SplitOver) -> None:
    backend = FakeBackend()
    split = await split_over(backend, **OWN_IDS)
    backend.gate.clear()
    async with split.client as client:
        first = asyncio.create_task(post(client, asked(1)))
        await until(lambda: len(backend.shapes) == 2)  # one was made at the start
        leaving = asyncio.create_task(
            post(client, {"model": PLAIN, "input": different_ids(100, 100)})
        )
        await until(lambda: admitted(split) == 10_001)
        leaving.cancel()
        await until(lambda: admitted(split) == 1)
        backend.gate.set()
        assert (await first).status_code == 200
    assert (len(backend.shapes), split.models.in_flight) == (2, 0)


async def test_a_lost_front_end_takes_its_waiting_work_along(split_over: SplitOver) -> None:
    backend = FakeBackend()
    split = await split_over(backend, **OWN_IDS)
    backend.gate.clear()
    async with split.client as client:
        answers = [asyncio.create_task(post(client, asked(1, 2, 3))) for _ in range(5)]
        await until(lambda: admitted(split) == 15)
        split.link.channel.abort()
        await until(lambda: split.models.in_flight == 0)
        codes = [(await answer).json()["error"]["code"] for answer in answers]
        assert codes == ["server_draining"] * 5
    assert split.remote.phase is Phase.DRAINING  # it ends itself
    backend.gate.set()


async def test_a_model_that_fails_turns_the_front_end_unready_until_it_works_again(
    split_over: SplitOver,
) -> None:
    backend = FakeBackend()
    split = await split_over(backend, **OWN_IDS, patience=Patience(probe_interval_s=0.05))
    async with split.client as client:
        assert (await client.get("/readyz")).status_code == 200
        backend.broken.set()
        for _ in range(3):
            await post(client, asked(1))
        await until(lambda: not split.told().sound)
        for refused in (await client.get("/readyz"), await post(client, asked(1))):
            assert refused.json()["error"]["code"] == "model_failing"
        assert (await client.get("/health")).json()["status"] == "failing"
        backend.broken.clear()
        await until(lambda: split.told().sound)
        assert (await post(client, asked(1))).status_code == 200


async def test_a_model_that_fails_is_told_with_the_failure_that_shows_it(
    split_over: SplitOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_service, "STATE_INTERVAL_S", 3600)
    backend = FakeBackend()
    split = await split_over(backend, **OWN_IDS)
    backend.broken.set()
    async with split.client as client:
        for _ in range(FAILURES_BEFORE_PROBE):
            assert split.told().sound
            assert (await post(client, asked(1))).status_code == 500
        assert not split.told().sound
        assert (await post(client, asked(1))).json()["error"]["code"] == "model_failing"


async def test_a_front_end_knows_every_fact_that_the_engine_process_does(
    split_over: SplitOver,
) -> None:
    split = await split_over(FakeBackend(), **OWN_IDS, lazy=True)
    known = [split.models.models[0].state]
    assert known == [ModelState()] == [split.told()]
    async with split.client as client:
        assert (await post(client, asked(1))).status_code == 200
    known = [split.models.models[0].state]
    assert known != [ModelState()]
    assert known == [split.told()]


async def test_a_state_of_other_models_ends_the_front_end(split_over: SplitOver) -> None:
    split = await split_over(FakeBackend())
    split.link.channel.tell(EngineState(is_ready=True))
    async with asyncio.timeout(10):
        await split.link.lost.wait()
    await until(lambda: split.remote.phase is Phase.DRAINING)


async def test_a_model_is_loaded_when_asked_for_and_told_when_unloaded(
    split_over: SplitOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_service, "STATE_INTERVAL_S", 3600)  # the news come without it
    backend = FakeBackend()
    backend.turnstile = threading.Semaphore(0)
    # Unloaded between its load and its admission, it would be loaded twice and wait for the turnstile.
    split = await split_over(backend, **OWN_IDS, lazy=True, unload_after_s=1)
    async with split.client as client:
        for _ in range(2):
            assert not split.told().loaded
            backend.turnstile.release()  # for the pass of its load
            answer = asyncio.create_task(post(client, asked(1, 2)))
            await until(lambda: admitted(split) == 2)
            assert split.told().loaded
            with split.remote.request_for(PLAIN) as model:
                assert model.loaded is not None
            backend.turnstile.release()
            assert (await answer).status_code == 200
            await until(lambda: not split.told().loaded)
            with split.remote.request_for(PLAIN) as model:
                assert model.loaded is None
    assert "load" in split.app.state.services.metrics.page().decode()


async def test_a_model_that_cannot_be_loaded_is_told_as_by_one_process(
    split_over: SplitOver,
) -> None:
    split = await split_over(FakeBackend(), **OWN_IDS, lazy=True)
    split.opener.fails = ModelLoadError("the disk is gone")
    async with split.client as client:
        for _ in range(2):
            refused = await post(client, asked(1))
            assert refused.json()["error"]["code"] == "model_load_failed"
            assert 1 <= int(refused.headers["retry-after"]) <= 5
        # It takes work: only the next request can tell that the disk is back.
        await until(lambda: split.told().load_failed)
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["troubles"]["models"].startswith(f"could not be loaded: {PLAIN};")


async def test_the_end_of_a_drain_answers_what_is_in_flight(split_over: SplitOver) -> None:
    backend = FakeBackend()
    split = await split_over(backend, **OWN_IDS)
    backend.gate.clear()
    async with split.client as client:
        answer = asyncio.create_task(post(client, asked(1)))
        await until(lambda: admitted(split) == 1)
        split.link.channel.tell(Drain())
        await until(lambda: split.remote.phase is Phase.DRAINING)
        assert (await post(client, asked(1))).json()["error"]["code"] == "server_draining"
        assert not answer.done()
        split.remote.close()
        assert (await answer).json()["error"]["code"] == "server_draining"
        await until(lambda: split.models.in_flight == 0)
    backend.gate.set()


async def another_front_end(split: Split) -> tuple[FrontEndLink, Channel]:
    """The engine process's side of one more, and the bare channel at the other end."""
    ours, theirs = socket.socketpair()
    link = await split.service.connect(ours)
    await welcomed(theirs)

    async def answer(question: Question[Any]) -> object:
        raise AssertionError

    channel = Channel(theirs, answer, told=lambda message: None, lost=lambda: None)
    await channel.open()
    return link, channel


async def test_a_ticket_number_in_use_ends_the_channel(split_over: SplitOver) -> None:
    split = await split_over(FakeBackend())
    link, channel = await another_front_end(split)
    await channel.ask(Admit(0, "key", 7, 3))
    assert admitted(split) == 7
    with pytest.raises(Draining):
        await channel.ask(Admit(0, "key", 1, 3))
    await link.lost.wait()
    assert nothing_is_held(split)


ONE_TOKEN = Embed.of(0, "key", None, [np.array([1], np.int32)])


@pytest.mark.parametrize(
    "question",
    [
        Embed(0, "key", None, memoryview(b""), memoryview(b"")),
        Embed(7, "key", None, ONE_TOKEN.lengths, ONE_TOKEN.token_ids),  # no such model
        Embed(-1, "key", None, ONE_TOKEN.lengths, ONE_TOKEN.token_ids),
        Embed(0, "key", 3, ONE_TOKEN.lengths, ONE_TOKEN.token_ids),  # no such ticket
        Load(7),
        Admit(7, "key", 1, 0),
    ],
    ids=lambda question: type(question).__name__,
)
async def test_a_question_that_makes_no_sense_ends_the_channel_but_not_the_engine(
    split_over: SplitOver, question: Question[Any]
) -> None:
    split = await split_over(FakeBackend(), **OWN_IDS)
    link, channel = await another_front_end(split)
    with pytest.raises(Draining):
        await channel.ask(question)
    async with asyncio.timeout(10):
        await link.lost.wait()
    assert split.models.resolve(PLAIN).state.sound
    assert split.models.in_flight == 0


@pytest.mark.parametrize("told", [Ready(), Drain(), ONE_TOKEN], ids=lambda one: type(one).__name__)
async def test_what_is_told_at_the_wrong_time_ends_the_channel(
    split_over: SplitOver, told: Message
) -> None:
    split = await split_over(FakeBackend())
    link, channel = await another_front_end(split)
    channel.tell(Ready())
    await until(link.ready.done)
    channel.tell(told)
    async with asyncio.timeout(10):
        await link.lost.wait()


async def test_limits_a_minute_are_counted_by_the_engine_process(
    split_over: SplitOver,
) -> None:
    split = await split_over(FakeBackend())
    link, channel = await another_front_end(split)
    await asyncio.gather(*(channel.ask(TakeIfFits("a", 1, 100)) for _ in range(20)))
    counters = RemoteCounters(channel)
    fits, held, ends_in_s = await counters.take_if_fits("a", 3, 100)
    assert (fits, held) == (True, 23)
    assert 0 < ends_in_s <= 60
    assert (await counters.take_if_fits("a", 78, 100))[:2] == (False, 23)
    assert await counters.take_if_fits("b", 0, 100) == (True, 0, 0.0)
    channel.abort()
    await link.lost.wait()


def test_a_front_end_shows_the_fingerprint_of_what_the_engine_computes_in(
    plain_card: Card,
) -> None:
    half = plain_card.computed_in("float16")
    welcome = Welcome(Settings(model=[PLAIN]), [(PLAIN, "float16", half.fingerprint)])
    (card,) = registry_of(welcome).cards
    assert card.fingerprint == half.fingerprint != plain_card.fingerprint


async def test_what_is_refused_for_too_much_work_costs_no_tokens_of_the_minute(
    split_over: SplitOver, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    database = Database(url)
    _, secret = KeyStore(database).create("key", limits=Limits(tokens_per_minute=100))
    database.close()
    backend = FakeBackend()
    split = await split_over(backend, **OWN_IDS, max_queue_tokens=10, database_url=url)
    backend.gate.clear()
    async with split.client as client:
        waiting = asyncio.create_task(post(client, asked(*range(1, 11)), secret))
        await until(lambda: admitted(split) == 10)
        refused = await post(client, asked(*range(1, 41)), secret)
        assert refused.json()["error"]["code"] == "server_overloaded"
        backend.gate.set()
        assert (await waiting).headers["x-ratelimit-remaining-tokens"] == "90"
        last = await post(client, asked(*range(1, 11)), secret)
        assert last.headers["x-ratelimit-remaining-tokens"] == "80"
    await split.app.state.services.access.close()


def test_a_card_that_changed_since_the_start_is_not_served(tmp_path: Path) -> None:
    welcome = Welcome(Settings(model=[PLAIN]), [(PLAIN, "float32", "0" * 16)])
    with pytest.raises(CardError, match="changed on disk"):
        registry_of(welcome)


async def test_a_front_end_asks_for_keys_once_a_database_appears(
    split_over: SplitOver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "LOOK_INTERVAL_S", 0.01)
    split = await split_over(FakeBackend(), **OWN_IDS, data_dir=tmp_path)
    keys = split.app.state.services.access
    keys.start()
    async with split.client as client:
        assert (await post(client, asked(1))).status_code == 200
        database = Database(f"sqlite:///{tmp_path / 'embedding-server.db'}")
        key, secret = KeyStore(database).create("key", limits=Limits(requests_per_minute=2))
        database.close()
        await until(lambda: keys.asks_for_keys and keys._shared is not None)
        assert (await post(client, asked(1))).status_code == 401
        answer = await post(client, asked(1), secret)
        assert answer.headers["x-ratelimit-remaining-requests"] == "1"
        link, channel = await another_front_end(split)
        everybodys = RemoteCounters(channel)
        name = f"LIMITS:embedding-server/{key.id}/requests"
        assert (await everybodys.take_if_fits(name, 0, 0)).held == 1
        channel.abort()
        await link.lost.wait()
    await keys.close()
