"""Models that are loaded when they are asked for; most at a real server with the real model."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from server.catalog.card import CARD_FILE
from server.engine.on_demand import RETRY_LOAD_S
from server.http.app import create_app
from server.settings import Settings
from tests.api.routes.test_embeddings import refusal
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY, AppOver, client_of
from tests.engine import let_pass
from tests.fakes import FakeBackend
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess
from tests.waiting import wait_for

pytestmark = pytest.mark.server

PADDING_BYTES = 1_500_000_000  # hashing that takes a second or more; a hole on disk
PADDING_SHA256 = "1c5954e1c91f0fbe1c554067e042203a9a1259f439c126b08652b23bcb216065"


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """The plain model in a folder that may be changed."""
    shutil.copytree(REPOSITORY / "models" / PLAIN, tmp_path / PLAIN)
    return tmp_path


@pytest.fixture(scope="module")
def slow_to_load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose load takes long enough to be interrupted, beside the plain one."""
    models_dir = tmp_path_factory.mktemp("models")
    plain, slow = REPOSITORY / "models" / PLAIN, models_dir / "slow"
    (models_dir / PLAIN).symlink_to(plain)
    slow.mkdir()
    for file in plain.iterdir():
        if file.name != CARD_FILE:
            (slow / file.name).symlink_to(file)
    with (slow / "padding").open("wb") as padding:
        padding.truncate(PADDING_BYTES)
    pin = f'"padding" = {{ bytes = {PADDING_BYTES}, sha256 = "{PADDING_SHA256}" }}'
    card = (plain / CARD_FILE).read_text().replace(PLAIN, "slow")
    (slow / CARD_FILE).write_text(card.replace("[files]\n", f"[files]\n{pin}\n"))
    return models_dir


def serving(models_dir: Path, *flags: str) -> ServerProcess:
    return ServerProcess("--lazy", "--models-dir", str(models_dir), "--model", PLAIN, *flags)


def post(server: ServerProcess, **fields: Any) -> httpx.Response:
    body = {"model": PLAIN, "input": "x", **fields}
    return httpx.post(f"{server.base_url}/embeddings", json=body, timeout=60)


def loaded(server: ServerProcess) -> dict[str, bool]:
    models = httpx.get(f"{server.url}/health").json()["models"]
    return {model["name"]: model["loaded"] for model in models}


def stop_during_a_load(server: ServerProcess, pool: ThreadPoolExecutor) -> list[httpx.Response]:
    """The answers to requests for the slow model that the server has got when it is told to stop."""
    body = {"model": "slow", "input": "x"}
    connections = psutil.Process(server.process.pid).net_connections
    with httpx.Client(base_url=server.base_url, timeout=60) as client:
        waiting = [pool.submit(client.post, "/embeddings", json=body) for _ in range(20)]
        wait_for(
            lambda: sum(c.status == "ESTABLISHED" for c in connections()) == 20, "the requests"
        )
        time.sleep(0.2)
        assert not any(answer.done() for answer in waiting)
        assert server.stop(signal.SIGTERM) == 0
        assert "Traceback" not in server.log()
        return [answer.result() for answer in waiting]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


def test_a_lazy_server_is_ready_at_once_and_loads_when_asked(models_dir: Path) -> None:
    with serving(models_dir) as running:
        assert httpx.get(f"{running.url}/readyz").json() == {"status": "ready"}
        assert loaded(running) == {PLAIN: False}
        before = running.resident_bytes()
        with openai.OpenAI(base_url=running.base_url, api_key="none", max_retries=0) as client:
            assert len(client.embeddings.create(model=PLAIN, input="x").data) == 1
        assert loaded(running) == {PLAIN: True}
        (state,) = httpx.get(f"{running.url}/health").json()["models"]
        assert state["encoder"] == PLAIN
        files = [file for file in (models_dir / PLAIN).iterdir() if file.name != CARD_FILE]
        assert state["file_bytes"] == sum(file.stat().st_size for file in files)
        grown = running.resident_bytes() - before
        assert 0.5 * grown < state["resident_bytes"] < 1.5 * grown
        assert "loaded in " in running.log()
        page = MetricsPage(httpx.get(f"{running.url}/metrics").content)
        assert page.value("stage_seconds_count", stage="load", model=PLAIN) == 1
        assert page.value("stage_seconds_sum", stage="load", model=PLAIN) > 0.01


async def test_what_is_wrong_with_a_request_is_told_without_loading_its_model(
    app_over: AppOver,
) -> None:
    app = await app_over(FakeBackend(), lazy=True)
    async with client_of(app) as client:

        async def ask(pin: str | None = None, **fields: Any) -> httpx.Response:
            headers = {} if pin is None else {"x-expect-embedding-fingerprint": pin}
            body = {"model": PLAIN, "input": "x", **fields}
            return await client.post("/v1/embeddings", json=body, headers=headers)

        for wrong in ({"input": ""}, {"dimensions": 7}, {"extra": 1}, {"pin": "0" * 16}):
            refusal(await ask(**wrong))
        assert (await client.get("/v1/models")).status_code == 200
        (model,) = app.state.services.models.models
        assert not model.state.loaded
        assert (await ask()).status_code == 200
        (model,) = app.state.services.models.models
        assert model.state.loaded


def test_an_idle_model_gives_its_memory_back_again_and_again() -> None:
    with ServerProcess("--lazy", "--unload-after-s", "0.3") as running:
        held, given_back = [], []
        for _ in range(4):
            assert post(running, model=MATRYOSHKA, input=["word " * 250] * 2).status_code == 200
            held.append(running.resident_bytes())
            wait_for(lambda: "unloaded" in running.log().rsplit(" loaded in ", 1)[1], "the unload")
            assert loaded(running) == {MATRYOSHKA: False, PLAIN: False}
            given_back.append(running.resident_bytes())
        for more, less in zip(held, given_back, strict=True):
            assert more - less > 70e6  # the weights take 91 MB
        assert given_back[-1] - given_back[0] < 15e6
        assert "Traceback" not in running.log()


async def test_a_thousand_requests_for_a_model_on_disk_are_all_answered(
    models_dir: Path,
) -> None:
    body = json.dumps({"model": PLAIN, "input": "x"}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving(models_dir) as running:
        host, port = running.url.removeprefix("http://").split(":")

        async def ask() -> bytes:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + body)
            status = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return status

        answers = await asyncio.gather(*(ask() for _ in range(1000)))
        assert set(answers) == {b"HTTP/1.1 200 OK\r\n"}
        page = await asyncio.to_thread(httpx.get, f"{running.url}/metrics")
        assert MetricsPage(page.content).value("model_loads_total", model=PLAIN) == 1


async def test_a_file_that_changed_meanwhile_is_not_served_until_it_is_right_again(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the real loader, and the event loop's clock moved over the pauses."""
    weights = models_dir / PLAIN / "model.safetensors"
    good = weights.read_bytes()
    bad = good[:-1] + bytes([good[-1] ^ 1])
    asked = {"models_dir": models_dir, "model": [PLAIN], "lazy": True, "unload_after_s": 60}
    app = create_app(Settings.model_validate(asked))
    models = app.state.services.models
    await models.load(app.state.services.metrics)
    async with client_of(app) as client:

        async def ask() -> httpx.Response:
            return await client.post("/v1/embeddings", json={"model": PLAIN, "input": "x"})

        assert (await ask()).status_code == 200
        let_pass(61, monkeypatch)
        async with asyncio.timeout(20):
            while models.models[0].state.loaded:  # noqa: ASYNC110
                await asyncio.sleep(0)
        weights.write_bytes(bad)
        for _ in range(2):
            response = await ask()
            error = refusal(response, status=503)
            assert (error["type"], error["code"]) == ("upstream_error", "model_load_failed")
            assert 1 <= int(response.headers["retry-after"]) <= 5
            assert str(models_dir) not in response.text
        assert caplog.text.count("model.safetensors has sha256") == 1
        assert (await client.get("/readyz")).status_code == 200
        weights.unlink()
        let_pass(RETRY_LOAD_S, monkeypatch)
        refusal(await ask(), status=503)
        assert "No such file" in caplog.text
        weights.write_bytes(good)
        let_pass(RETRY_LOAD_S, monkeypatch)
        assert (await ask()).status_code == 200
    assert not any(record.exc_info for record in caplog.records)
    models.close()
    await asyncio.to_thread(models.join)


async def test_a_request_that_a_load_holds_up_too_long_is_answered(app_over: AppOver) -> None:
    backend = FakeBackend()
    backend.gate.clear()  # which the load's first pass waits for
    app = await app_over(backend, lazy=True, request_timeout_s=0.1)
    async with client_of(app) as client:
        body = {"model": PLAIN, "input": "x"}
        error = refusal(await client.post("/v1/embeddings", json=body), status=503)
        assert error["code"] == "request_timeout"
        backend.gate.set()
        async with asyncio.timeout(20):
            while (await client.post("/v1/embeddings", json=body)).status_code != 200:
                pass
    page = MetricsPage(app.state.services.metrics.page())
    assert page.value("model_loads_total", model=PLAIN) == 1


def test_other_models_answer_while_one_is_loaded(
    slow_to_load: Path, pool: ThreadPoolExecutor
) -> None:
    with serving(slow_to_load, "--model", "slow") as running:
        waiting = pool.submit(post, running, model="slow")
        assert post(running).status_code == 200
        assert not waiting.done()
        assert httpx.get(f"{running.url}/readyz").status_code == 200
        assert waiting.result().status_code == 200


def test_a_drain_during_a_load_answers_those_who_wait(
    slow_to_load: Path, pool: ThreadPoolExecutor
) -> None:
    with serving(slow_to_load, "--model", "slow") as running:
        answers = stop_during_a_load(running, pool)
        assert {answer.status_code for answer in answers} == {200}


def test_a_load_that_outlasts_the_drain_is_answered_503(
    slow_to_load: Path, pool: ThreadPoolExecutor
) -> None:
    with serving(slow_to_load, "--model", "slow", "--drain-timeout-s", "0.1") as running:
        for answer in stop_during_a_load(running, pool):
            assert refusal(answer, status=503)["code"] == "server_draining"


def test_a_load_that_nobody_waits_for_does_not_disturb_the_end(slow_to_load: Path) -> None:
    with serving(slow_to_load, "--model", "slow") as running:
        body = {"model": "slow", "input": "x"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.base_url}/embeddings", json=body, timeout=0.3)
        assert running.stop(signal.SIGTERM) == 0
        assert "Traceback" not in running.log()
