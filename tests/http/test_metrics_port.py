"""/metrics on a port of its own, or nowhere: what each port answers, and until when."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import socket
import subprocess
import sys

import httpx
import psutil
import pytest

from server.http.app import create_app
from server.http.metrics_port import MAX_CONNECTIONS
from server.settings import Settings
from tests.conftest import PLAIN, client_of
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess
from tests.waiting import wait_for

BODY = {"model": PLAIN, "input": "x"}


def serve(*flags: str) -> ServerProcess:
    return ServerProcess("--model", PLAIN, "--threads", "1", "--metrics-port", "0", *flags)


def metrics_url(server: ServerProcess) -> str:
    found = re.search(r"/metrics is on 127\.0\.0\.1 port (\d+)", server.log())
    assert found
    return f"http://127.0.0.1:{found[1]}"


@pytest.mark.server
@pytest.mark.parametrize("frontends", [1, 2])
def test_each_port_answers_for_its_own_paths_and_the_counters_are_one(frontends: int) -> None:
    with serve("--frontends", str(frontends)) as server:
        beside = metrics_url(server)
        for _ in range(6):  # over new connections, so that each front end has some
            assert httpx.post(f"{server.base_url}/embeddings", json=BODY).status_code == 200
        for path in ("/livez", "/v1/models", "/openapi.json"):
            assert httpx.get(server.url + path).status_code == 200
            refused = httpx.get(beside + path)
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "unknown_url"
        assert httpx.get(f"{server.url}/metrics").status_code == 404
        assert "/metrics" not in httpx.get(f"{server.url}/openapi.json").json()["paths"]
        wait_for(lambda: answered(beside) == 6, "all of them on the page")
        if frontends > 1:
            killed = psutil.Process(server.process.pid).children()[0]
            wait_for(
                lambda: count_on(server.answer_of_another(f"{beside}/metrics", killed)) == 6,
                "what it has counted",
            )
            killed.kill()
            wait_for(lambda: "starting another one" in server.log(), "a front end in its place")
            for _ in range(8):
                assert answered(beside) == 6
        assert server.stop() == 0


def answered(beside: str) -> float:
    """How many requests were answered, as a new connection is told."""
    return count_on(httpx.get(f"{beside}/metrics", timeout=60))


def count_on(page: httpx.Response) -> float:
    assert page.status_code == 200
    labels = {"route": "/v1/embeddings", "status": "200", "model": PLAIN}
    return MetricsPage(page.content).value("requests_total", **labels)


@pytest.mark.server
def test_the_metrics_can_be_read_until_the_drain_is_over() -> None:
    with serve("--drain-timeout-s", "60") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n")
            slow.sendall(b"Content-Length: 9\r\n\r\n")
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not listens(server.url), "a closed port")
            with httpx.Client(base_url=metrics_url(server)) as client:
                page = MetricsPage(client.get("/metrics").content)
            assert page.value("ready") == 0
            slow.sendall(b'{"a": 1}\n')
            slow.recv(65536)
        assert server.process.wait(30) == 0


def listens(url: str) -> bool:
    try:
        httpx.get(f"{url}/livez")
    except httpx.ConnectError:
        return False
    except httpx.TransportError:  # it was closed meanwhile
        return True
    return True


@pytest.mark.server
def test_idle_connections_give_way_to_whoever_reads_the_metrics() -> None:
    with serve() as server, contextlib.ExitStack() as held:
        beside = metrics_url(server)
        host, port = beside.removeprefix("http://").split(":")
        idle = [
            held.enter_context(socket.create_connection((host, int(port)), timeout=30))
            for _ in range(MAX_CONNECTIONS)
        ]
        assert httpx.get(f"{beside}/metrics").status_code == 200
        closed, _, _ = select.select(idle, [], [], 30)
        assert [one.recv(1) for one in closed] == [b""]


@pytest.mark.server
@pytest.mark.parametrize("frontends", ["1", "2"])
def test_a_port_in_use_is_one_line(frontends: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "server", "serve", "--lazy", "--port", "0"]
        ended = subprocess.run(
            [*command, "--metrics-port", port, "--frontends", frontends],
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in line


async def test_metrics_that_are_off_are_nowhere() -> None:
    app = create_app(Settings(metrics_port="off"))
    async with client_of(app) as client:
        assert (await client.get("/metrics")).json()["error"]["code"] == "unknown_url"
    assert "/metrics" not in app.openapi()["paths"]
