"""Front ends as they are run: processes over HTTP, and signals."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import Limits
from server.access.usage_report import By, usage_by
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY
from tests.different_texts import different_texts
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess
from tests.waiting import wait_for

pytestmark = pytest.mark.server

ONE_THREAD = ("--threads", "1")  # so that a request's micro-batches are always the same
LONG_TEXTS = different_texts(25, 250)  # some seconds for one thread
LONG_WORK = {"model": PLAIN, "input": LONG_TEXTS}
QUERY = {"model": PLAIN, "input": "what is the capital of France"}


def serve(*flags: str, **options: Any) -> ServerProcess:
    return ServerProcess("--frontends", "2", *ONE_THREAD, *flags, **options)


def front_ends(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def front_end_of(server: ServerProcess, connection: socket.socket) -> psutil.Process:
    """Whose connection it is."""
    found = server.child_with(connection)
    assert found is not None, "no front end has this connection"
    return found


def client(server: ServerProcess) -> httpx.Client:
    # Reading the authorities of TLS, of which nothing is used here, takes longer than a request.
    return httpx.Client(base_url=server.url, timeout=120, verify=False)


def page(server: ServerProcess) -> MetricsPage:
    with client(server) as http:
        return MetricsPage(http.get("/metrics").content)


class Connection:
    """One kept connection to one front end."""

    def __init__(self, server: ServerProcess) -> None:
        self.client = client(server)
        with self.client.stream("GET", "/livez") as answer:
            stream = answer.extensions["network_stream"]
            connection = stream.get_extra_info("socket")
            assert answer.read()
            wait_for(lambda: _has_front_end(server, connection), "an accepted connection")
            self.front_end = front_end_of(server, connection)

    def post(self, body: dict[str, Any]) -> httpx.Response:
        return self.client.post("/v1/embeddings", json=body)


def page_of(connection: Connection) -> MetricsPage:
    return MetricsPage(connection.client.get("/metrics").content)


def _has_front_end(server: ServerProcess, connection: socket.socket) -> bool:
    with contextlib.suppress(AssertionError):
        front_end_of(server, connection)
        return True
    return False


@contextlib.contextmanager
def one_connection_each(server: ServerProcess) -> Iterator[list[Connection]]:
    """A connection to each of the two front ends."""
    found: dict[int, Connection] = {}
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            connection = Connection(server)
            stack.callback(connection.client.close)
            found.setdefault(connection.front_end.pid, connection)
            if len(found) == 2:
                break
        assert len(found) == 2
        yield list(found.values())


@pytest.fixture(scope="module")
def many() -> Iterator[ServerProcess]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def one() -> Iterator[ServerProcess]:
    with ServerProcess(*ONE_THREAD) as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


BODIES: list[dict[str, Any]] = [
    QUERY,
    {"model": PLAIN, "input": [f"text {n} " + "more " * n for n in range(100)]},
    {"model": PLAIN, "input": ["one", "two"], "encoding_format": "base64"},
    {"model": PLAIN, "input": [9906, 1917]},
    {"model": MATRYOSHKA, "input": ["one", "two"], "dimensions": 32},
    {"model": MATRYOSHKA, "input": [f"{n}" for n in range(70)], "encoding_format": "base64"},
    {"model": PLAIN, "input": "long " * 5000, "truncate": True},
    {"model": PLAIN, "input": "long " * 5000},
    {"model": PLAIN, "input": "x", "dimensions": 8},
    {"model": "unknown", "input": "x"},
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_every_front_end_answers_bit_for_bit_as_one_process(
    one: ServerProcess, many: ServerProcess, body: dict[str, Any]
) -> None:
    expected = httpx.post(f"{one.base_url}/embeddings", json=body, timeout=60)
    with one_connection_each(many) as connections:
        for connection in connections:
            answer = connection.post(body)
            assert (answer.status_code, answer.content) == (expected.status_code, expected.content)
            fingerprint = "x-embedding-fingerprint"
            assert answer.headers.get(fingerprint) == expected.headers.get(fingerprint)


def test_connections_are_spread_over_all_front_ends(many: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        host, port = many.url.removeprefix("http://").split(":")
        opened = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            for _ in range(40)
        ]
        wait_for(lambda: all(_has_front_end(many, one) for one in opened), "all connections")
        assert len({front_end_of(many, one).pid for one in opened}) == 2


def test_the_metrics_of_any_front_end_are_those_of_all() -> None:
    with serve() as server:
        for number in range(25):
            body = {"model": PLAIN, "input": ["some text", "another", "a third"][: number % 3 + 1]}
            with client(server) as http:  # on a connection of its own
                assert http.post("/v1/embeddings", json=body).status_code == 200
        labels = {"route": "/v1/embeddings", "status": "200", "model": PLAIN}
        wait_for(lambda: page(server).value("requests_total", **labels) == 25, "what both counted")
        with one_connection_each(server) as connections:
            for connection in connections:
                found = page_of(connection)
                assert found.value("requests_total", **labels) == 25
                assert found.value("request_seconds_count", route="/v1/embeddings") == 25
                tokens = found.value("input_tokens_total", model=PLAIN)
                assert found.value("computed_tokens_total", model=PLAIN) == tokens
                assert found.value("model_loaded", model=PLAIN) == 1
                assert found.value("replicas_alive", model=PLAIN) == 1
                assert found.value("ready") == 1
                assert found.total("build_info") == 1


def test_health_and_models_are_told_by_each(one: ServerProcess, many: ServerProcess) -> None:
    expected = httpx.get(f"{one.url}/health").json()
    with one_connection_each(many) as connections:
        for connection in connections:
            assert connection.client.get("/health").json() == expected
            assert connection.client.get("/readyz").json() == {"status": "ready"}
            listed = connection.client.get("/v1/models").json()["data"]
            assert [model["id"] for model in listed] == [MATRYOSHKA, PLAIN]


def post_anew(server: ServerProcess, secret: str, text: str = "one two three") -> int:
    """The status for a request on a connection of its own."""
    body = {"model": PLAIN, "input": text}
    headers = {"Authorization": f"Bearer {secret}"}
    with client(server) as http:
        return http.post("/v1/embeddings", json=body, headers=headers).status_code


def test_limits_a_minute_and_budgets_are_exact_over_all_front_ends(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    database = Database(url)
    store = KeyStore(database)
    _, few_requests = store.create("requests", limits=Limits(requests_per_minute=20))
    _, few_tokens = store.create("tokens", limits=Limits(tokens_per_minute=52))  # 5 a request
    _, small_budget = store.create("budget", limits=Limits(token_budget=52))
    with serve("--database-url", url) as server:
        statuses = list(pool.map(lambda _: post_anew(server, few_requests), range(60)))
        assert sorted(statuses) == [200] * 20 + [429] * 40
        statuses = [post_anew(server, few_tokens) for _ in range(20)]
        assert statuses == [200] * 10 + [429] * 10
        statuses = list(pool.map(lambda _: post_anew(server, small_budget), range(40)))
        assert set(statuses) <= {200, 402}
        assert statuses.count(200) <= 10
        assert server.stop() == 0
        assert "Traceback" not in server.log()
    used = {row.name: row.tokens for row in usage_by(database, By.KEY)}
    assert used == {"requests": 100, "tokens": 50, "budget": 5 * statuses.count(200)}
    database.close()


def computing(pool: ThreadPoolExecutor, connection: Connection, server: ServerProcess) -> Future[httpx.Response]:  # fmt: skip
    """Long work that has been let in."""
    before = page(server).value("admitted_tokens", model=PLAIN)
    answer = pool.submit(connection.post, LONG_WORK)
    wait_for(
        lambda: page(server).value("admitted_tokens", model=PLAIN) > before + 1000, "its tokens"
    )
    return answer


def test_a_client_that_leaves_takes_its_waiting_work_along(many: ServerProcess) -> None:
    with client(many) as http:
        answer = http.post("/v1/embeddings", json={**LONG_WORK, "input": LONG_TEXTS[0]})
        tokens = answer.json()["usage"]["total_tokens"]
    before = page(many).value("computed_tokens_total", model=PLAIN)
    host, port = many.url.removeprefix("http://").split(":")
    request = httpx.Request("POST", f"{many.base_url}/embeddings", json=LONG_WORK)
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(request.content)}"
    )
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + request.content)
        wait_for(lambda: page(many).value("admitted_tokens", model=PLAIN) > 0, "its tokens")
    wait_for(lambda: page(many).value("admitted_tokens", model=PLAIN) == 0, "nothing left")
    computed = page(many).value("computed_tokens_total", model=PLAIN) - before
    assert computed < tokens * len(LONG_TEXTS)


def test_a_front_end_that_is_killed_is_replaced_and_the_others_go_on(
    pool: ThreadPoolExecutor,
) -> None:
    with serve() as server, one_connection_each(server) as (killed, other):
        for connection in (killed, other):
            assert connection.post(QUERY).status_code == 200
        labels = {"route": "/v1/embeddings", "status": "200", "model": PLAIN}
        wait_for(lambda: page_of(other).value("requests_total", **labels) == 2, "what both counted")
        lost = computing(pool, killed, server)
        killed.front_end.kill()
        with pytest.raises(httpx.TransportError):
            lost.result(timeout=30)
        assert other.post(QUERY).status_code == 200
        wait_for(lambda: page(server).value("admitted_tokens", model=PLAIN) == 0, "dropped work")
        wait_for(
            lambda: (
                {one.pid for one in front_ends(server)} - {killed.front_end.pid}
                > {other.front_end.pid}
            ),
            "another front end",
        )
        with one_connection_each(server) as connections:
            assert [each.post(QUERY).status_code for each in connections] == [200, 200]
        # The killed one's, too.
        wait_for(lambda: page(server).value("requests_total", **labels) == 5, "what all counted")
        assert page(server).value("frontend_restarts_total", reason="ended") == 1
        assert "starting another one" in server.log()
        assert server.stop() == 0


def test_front_ends_end_when_the_engine_process_is_killed(pool: ThreadPoolExecutor) -> None:
    with serve() as server, one_connection_each(server) as connections:
        orphans = [connection.front_end for connection in connections]
        answer = computing(pool, connections[0], server)
        server.process.kill()
        _, alive = psutil.wait_procs(orphans, timeout=10)
        assert alive == []
        with contextlib.suppress(httpx.TransportError):
            assert answer.result(timeout=30).json()["error"]["code"] == "server_draining"


@pytest.mark.parametrize(
    ("stop_signal", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_a_drain_finishes_what_each_front_end_has(
    pool: ThreadPoolExecutor, stop_signal: signal.Signals, to_all: bool
) -> None:
    with (
        serve("--drain-timeout-s", "120") as server,
        one_connection_each(server) as connections,
    ):
        answers = [computing(pool, connection, server) for connection in connections]
        processes = front_ends(server)
        if to_all:  # as Control-C and systemd do
            for process in processes:
                process.send_signal(stop_signal)
        server.process.send_signal(stop_signal)
        host, port = server.url.removeprefix("http://").split(":")
        wait_for(lambda: httpx.get(f"{server.url}/readyz").status_code == 503, "a drain")
        refused = httpx.post(f"{server.base_url}/embeddings", json=QUERY)
        assert refused.json()["error"]["code"] == "server_draining"
        assert not any(answer.done() for answer in answers)
        for answer in answers:
            assert len(answer.result(timeout=120).json()["data"]) == len(LONG_TEXTS)
        assert server.process.wait(timeout=30) == 0
        assert psutil.wait_procs(processes, timeout=0)[1] == []
        assert server.log().count("finishing work in flight") == 1
        assert "Traceback" not in server.log()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))


def test_a_front_end_without_work_drains_as_long_as_another_one_has_some(
    pool: ThreadPoolExecutor,
) -> None:
    with (
        serve("--drain-timeout-s", "120") as server,
        one_connection_each(server) as (busy, idle),
    ):
        answer = computing(pool, busy, server)
        server.process.send_signal(signal.SIGTERM)
        began_s, watched_s = time.monotonic(), 0.0
        while not answer.done():
            alive = idle.front_end.is_running()
            with contextlib.suppress(httpx.TransportError):
                if page(server).value("admitted_tokens", model=PLAIN) > 0:
                    assert alive
                    watched_s = time.monotonic() - began_s
        assert watched_s > 0.5
        assert len(answer.result().json()["data"]) == len(LONG_TEXTS)
        assert server.process.wait(timeout=30) == 0


def test_a_second_signal_cuts_the_drain_short(pool: ThreadPoolExecutor) -> None:
    with serve() as server, one_connection_each(server) as connections:
        answers = [computing(pool, connection, server) for connection in connections]
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{server.url}/readyz").status_code == 503, "a drain")
        assert server.stop() == 0
        codes = [answer.result(timeout=30).json()["error"]["code"] for answer in answers]
        assert codes == ["server_draining"] * 2


def test_work_that_outlasts_the_drain_timeout_is_answered_503(pool: ThreadPoolExecutor) -> None:
    with (
        serve("--drain-timeout-s", "0.3") as server,
        one_connection_each(server) as connections,
    ):
        answers = [computing(pool, connection, server) for connection in connections]
        assert server.stop() == 0
        codes = [answer.result(timeout=30).json()["error"]["code"] for answer in answers]
        assert codes == ["server_draining"] * 2


def test_a_lazy_server_loads_for_whoever_is_asked_and_all_tell_it() -> None:
    with serve("--lazy", "--unload-after-s", "1") as server:
        with one_connection_each(server) as (first, second):

            def loaded(connection: Connection) -> list[bool]:
                models = connection.client.get("/health").json()["models"]
                return [model["loaded"] for model in models]

            for asked, other in ((first, second), (second, first)):
                assert loaded(other) == [False, False]
                assert asked.post(QUERY).status_code == 200
                wait_for(lambda: loaded(other) == [False, True], "the news")  # noqa: B023
                assert other.post(QUERY).status_code == 200
                wait_for(lambda: loaded(asked) == loaded(other) == [False, False], "idleness")  # noqa: B023
            assert page(server).value("model_loads_total", model=PLAIN) == 2
        assert server.stop() == 0


def test_a_front_end_loads_no_runtime_for_models() -> None:
    code = "import sys, server.frontends.front_end; print('onnxruntime' in sys.modules)"
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert outcome.stdout == "False\n"


def test_no_front_end_shows_a_secret_to_other_users() -> None:
    secret = "sk-do-not-show-me"
    environment = {"EMBEDDING_SERVER_API_KEY": secret}
    with serve(environment=environment) as server:
        assert post_anew(server, secret) == 200
        assert post_anew(server, "sk-another") == 401
        lines = [" ".join(process.cmdline()) for process in front_ends(server)]
        assert len(lines) == 2
        assert secret not in " ".join(lines)
        assert server.stop() == 0
        assert secret not in server.log()


def start(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "serve", "--frontends", "2", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_an_address_in_use_stops_the_start_with_one_line(
    one: ServerProcess, many: ServerProcess
) -> None:
    for taken in (one, many):
        port = taken.url.rsplit(":", 1)[1]
        outcome = start("--port", port)
        assert outcome.returncode == 2
        (line,) = outcome.stderr.splitlines()
        reason = "Address already in use"
        assert line == f"embedding-server: cannot listen on 127.0.0.1 port {port}: {reason}"
        assert outcome.stdout == ""


@pytest.mark.parametrize("file", ["rotation.safetensors", "tokenizer.json"])
def test_a_changed_file_stops_the_start_with_one_line(tmp_path: Path, file: str) -> None:
    for name in (PLAIN, MATRYOSHKA):
        (tmp_path / name).mkdir()
        for path in (REPOSITORY / "models" / name).iterdir():
            if path.name == file:
                (tmp_path / name / file).write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")
            else:
                (tmp_path / name / path.name).symlink_to(path)
    outcome = start("--port", "0", "--models-dir", str(tmp_path))
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert re.match(rf"embedding-server: model \S+: .*{re.escape(file)} has sha256", line)
    assert outcome.stdout == ""


def test_a_card_that_changes_while_the_server_runs_is_refused_by_a_new_front_end(
    tmp_path: Path,
) -> None:
    (tmp_path / PLAIN).mkdir()
    for path in (REPOSITORY / "models" / PLAIN).iterdir():
        if path.name == "card.toml":
            (tmp_path / PLAIN / path.name).write_bytes(path.read_bytes())
        else:
            (tmp_path / PLAIN / path.name).symlink_to(path)
    with serve("--models-dir", str(tmp_path), "--model", PLAIN) as server:
        with one_connection_each(server) as (killed, other):
            card = (tmp_path / PLAIN / "card.toml").read_text()
            changed = card.replace("max_input_tokens = 256", "max_input_tokens = 128")
            assert changed != card
            (tmp_path / PLAIN / "card.toml").write_text(changed)
            killed.front_end.kill()
            wait_for(lambda: "was changed on disk" in server.log(), "the refusal")
            assert other.post(QUERY).status_code == 200
            (tmp_path / PLAIN / "card.toml").write_text(card)
            wait_for(lambda: len(front_ends(server)) == 2, "another one")
        with one_connection_each(server) as connections:
            assert [each.post(QUERY).status_code for each in connections] == [200, 200]
        assert server.stop() == 0
