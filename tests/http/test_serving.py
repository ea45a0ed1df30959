"""The life of a real server process: ready line, drain, signals, faults at the start."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY
from tests.different_texts import different_texts
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server

# Some seconds of work for one thread.
LONG_WORK = {"model": PLAIN, "input": different_texts(60, 250)}


STALLED_UPLOAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"


def connect(running: ServerProcess) -> socket.socket:
    """A bare connection, to behave as no HTTP client does."""
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def wait_for_work(url: str) -> None:
    """Return once the long request has reached the server."""
    time.sleep(0.5)
    assert httpx.get(f"{url}/readyz").status_code == 200


def test_the_ready_lines_command_works_when_pasted(server: ServerProcess) -> None:
    command = server.ready_line.split("Try: ", 1)[1]
    answer = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, timeout=30
    )
    assert '"embedding":[' in answer.stdout


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once_with_0(stop_signal: signal.Signals) -> None:
    with ServerProcess("--model", PLAIN) as running:
        assert running.stop(stop_signal) == 0
        assert "Traceback" not in running.log()


def test_a_draining_server_finishes_its_work_and_takes_no_more() -> None:
    with (
        ServerProcess("--model", PLAIN, "--threads", "1") as running,
        ThreadPoolExecutor() as pool,
    ):
        url = f"{running.base_url}/embeddings"
        in_flight = pool.submit(httpx.post, url, json=LONG_WORK, timeout=60)
        wait_for_work(running.url)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        for refused in (
            httpx.get(f"{running.url}/readyz"),
            httpx.post(url, json={"model": PLAIN, "input": "x"}),
        ):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "server_draining"
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close"
        assert httpx.get(f"{running.url}/livez").status_code == 200
        answer = in_flight.result(timeout=60)
        assert answer.status_code == 200
        assert len(answer.json()["data"]) == 60
        assert running.process.wait(timeout=30) == 0


def test_work_that_outlasts_the_drain_timeout_is_answered_503() -> None:
    with (
        ServerProcess("--model", PLAIN, "--threads", "1", "--drain-timeout-s", "0.5") as running,
        ThreadPoolExecutor() as pool,
    ):
        many = {**LONG_WORK, "input": different_texts(600, 250)}
        in_flight = pool.submit(httpx.post, f"{running.base_url}/embeddings", json=many, timeout=60)
        wait_for_work(running.url)
        assert running.stop() == 0
        answer = in_flight.result(timeout=60)
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "upstream_error"


def test_a_second_signal_stops_without_waiting() -> None:
    with (
        ServerProcess("--model", PLAIN, "--threads", "1") as running,
        ThreadPoolExecutor() as pool,
    ):
        many = {**LONG_WORK, "input": different_texts(600, 250)}
        in_flight = pool.submit(httpx.post, f"{running.base_url}/embeddings", json=many, timeout=60)
        wait_for_work(running.url)
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert running.stop(signal.SIGINT) == 0
        assert in_flight.result(timeout=60).json()["error"]["code"] == "server_draining"


def test_a_second_signal_does_not_wait_for_a_client_that_stalls() -> None:
    with ServerProcess("--model", PLAIN, "--drain-timeout-s", "600") as running:
        with connect(running) as connection:
            connection.sendall(STALLED_UPLOAD)
            wait_for_work(running.url)
            running.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            assert running.process.poll() is None
            assert running.stop() == 0
            assert connection.recv(100).startswith(b"HTTP/1.1 503 ")
        assert "Traceback" not in running.log()


def test_a_slow_reader_gets_its_whole_answer_during_a_drain() -> None:
    with ServerProcess("--model", PLAIN) as running:
        body = json.dumps({"model": PLAIN, "input": ["x"] * 2048}).encode()
        with connect(running) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            answer = connection.recv(1000)
            running.process.send_signal(signal.SIGTERM)
            time.sleep(4)  # longer than what is left to those who stall
            while received := connection.recv(1 << 20):
                answer += received
        assert running.process.wait(timeout=30) == 0
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["data"]) == 2048


def test_a_client_that_stalls_its_upload_cannot_hold_up_the_drain() -> None:
    with ServerProcess("--model", PLAIN, "--drain-timeout-s", "0.5") as running:
        with connect(running) as connection:
            connection.sendall(STALLED_UPLOAD)
            wait_for_work(running.url)
            assert running.stop() == 0
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"server_draining"' in answer
        assert "Traceback" not in running.log()


def test_a_thousand_connections_at_once_are_all_answered(server: ServerProcess) -> None:
    statuses: list[int] = []
    limits = httpx.Limits(max_connections=None)

    def ask(client: httpx.Client, number: int) -> None:
        body = {"model": MATRYOSHKA, "input": f"query {number}", "dimensions": 32}
        statuses.append(client.post("/v1/embeddings", json=body).status_code)

    with httpx.Client(base_url=server.url, timeout=120, limits=limits) as client:
        threads = [threading.Thread(target=ask, args=(client, n)) for n in range(1000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 1000


def models_with_one_changed_byte(folder: Path) -> Path:
    """The models of this repository, but that one number of the rotation is off by a rounding."""
    (folder / PLAIN).symlink_to(REPOSITORY / "models" / PLAIN)
    (folder / MATRYOSHKA).mkdir()
    for file in (REPOSITORY / "models" / MATRYOSHKA).iterdir():
        content = bytearray(file.read_bytes())
        if file.name == "rotation.safetensors":
            content[-4] ^= 1  # the lowest bit of a little-endian float32
        (folder / MATRYOSHKA / file.name).write_bytes(content)
    return folder


@pytest.mark.parametrize("check_files", ["sizes", "off"])
def test_a_changed_byte_is_served_if_the_bytes_are_not_to_be_checked(
    tmp_path: Path, check_files: str
) -> None:
    models_dir = models_with_one_changed_byte(tmp_path)
    flags = ["--models-dir", str(models_dir), "--check-files", check_files]
    with ServerProcess(*flags) as server:
        body = {"model": MATRYOSHKA, "input": "Hello", "dimensions": 32}
        answer = httpx.post(f"{server.base_url}/embeddings", json=body)
    assert answer.status_code == 200


def test_a_changed_byte_stops_the_start_with_one_line(tmp_path: Path) -> None:
    models_with_one_changed_byte(tmp_path)
    command = [sys.executable, "-m", "server", "serve", "--port", "0"]
    outcome = subprocess.run(
        [*command, "--models-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 2
    # Beside a warning where the system allows few open files.
    line = outcome.stderr.splitlines()[-1]
    assert "Traceback" not in outcome.stderr
    assert line.startswith(f"embedding-server: model {MATRYOSHKA}: ")
    assert "rotation.safetensors has sha256" in line
    assert outcome.stdout == ""


@pytest.mark.parametrize("frontends", ["1", "2"])
def test_signals_after_the_drain_do_not_change_the_exit_code(frontends: str) -> None:
    with ServerProcess("--model", PLAIN, "--frontends", frontends) as running:
        for stop_signal in itertools.cycle([signal.SIGTERM, signal.SIGINT]):
            running.process.send_signal(stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert running.process.wait(timeout=0.005) == 0
                break
        assert "Traceback" not in running.log()
