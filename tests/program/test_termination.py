"""How signals end a command."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path

import httpx
import pytest

from server.__main__ import main as hear_signals_then_run
from server.commands import cli
from server.program.termination import (
    STOP_SIGNALS,
    Terminated,
    ending_at_once,
    ignore_stop_signals,
    raise_when_stopped,
)
from tests.command_line import user_environment
from tests.conftest import REPOSITORY
from tests.services import free_port
from tests.waiting import wait_for

# Ends while a thread works that Python would wait for.
AT_ONCE = """
import signal, sys, threading
from server.program.termination import ending_at_once, raise_when_stopped

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
raise_when_stopped()
threading.Thread(target=threading.Event().wait).start()
with ending_at_once():
    signal.raise_signal(int(sys.argv[1]))
"""

# Gets the signal as soon as it begins to import this module.
WHILE_IMPORTED = """
import runpy, signal, sys

number, module = int(sys.argv.pop(1)), sys.argv.pop(1)

class Finder:
    def find_spec(name, *rest):
        if name == module:
            signal.raise_signal(number)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
sys.meta_path.insert(0, Finder)
runpy.run_module("server", run_name="__main__")
"""

# Gets the signal where an exception is swallowed, or becomes another one; then waits for ever.
WHILE_DEAF = """
import os, signal, sys, threading
from server.program.termination import exit_code_when_stopped, raise_when_stopped

signal.signal(signal.SIGINT, signal.default_int_handler)
with exit_code_when_stopped():
    raise_when_stopped()
    sys.path.insert(0, sys.argv[2])
    import swallowing
    {begin}
    threading.Event().wait()
"""
# Serves a model that takes for ever to read, and says when it has begun to.
WHILE_READ = """
import runpy, sys, threading
from server.inference.opening import Opener

def read(*_):
    print("reading", flush=True)
    threading.Event().wait()

Opener.open_encoder = read
runpy.run_module("server", run_name="__main__")
"""

SWALLOWING = """
import signal, sys

def send():
    try:
        signal.raise_signal(int(sys.argv[1]))
    except BaseException:
        pass

class Object:
    def __del__(self):
        signal.raise_signal(int(sys.argv[1]))

if len(sys.argv) == 3:
    send()
"""


@pytest.fixture(autouse=True)
def _handlers_of_each_test() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:  # the tests' own process must not end, nor ignore any
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_lets_a_command_tidy_up_undisturbed_by_a_second_one() -> None:
    raise_when_stopped()
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # while `finally` and `with` clear away


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_every_command_ends_with_the_code_that_shells_report(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    monkeypatch.setattr(cli, "app", lambda: signal.raise_signal(number))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_work_in_threads_ends_at_once_with_the_same_code(number: signal.Signals, code: int) -> None:
    child = [sys.executable, "-c", AT_ONCE, str(int(number))]
    outcome = subprocess.run(child, capture_output=True, text=True, timeout=60, check=False)
    assert (outcome.returncode, outcome.stderr) == (code, "")


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("serve", "server.commands.cli"),
        ("serve", "fastapi.openapi.models"),  # pydantic makes an error of its own of any exception
        ("keys create --name a", "sqlalchemy"),
        ("models import absent", "server.commands.models"),
    ],
)
def test_a_command_ends_with_the_same_code_while_it_is_imported(
    number: signal.Signals, command: str, module: str, tmp_path: Path
) -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", WHILE_IMPORTED, str(int(number)), module, *command.split()],
        env=user_environment({"EMBEDDING_SERVER_DATA_DIR": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (outcome.returncode, outcome.stderr) == (128 + number, "")


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("what", ["an import", "the end of an object"])
def test_a_signal_is_not_lost_where_exceptions_are(
    number: signal.Signals, what: str, tmp_path: Path
) -> None:
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    begin = "swallowing.Object()" if what == "the end of an object" else ""
    child = [sys.executable, "-c", WHILE_DEAF.format(begin=begin), str(int(number)), str(tmp_path)]
    outcome = subprocess.run(
        [*child, *([begin] if begin else [])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (outcome.returncode, outcome.stderr) == (128 + number, "")


@pytest.mark.parametrize("front_ends", ["1", "2"])
def test_a_server_that_still_reads_its_models_does_not_wait_for_them(front_ends: str) -> None:
    port = str(free_port())

    def is_alive() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        return False

    flags = ("serve", "--port", port, "--frontends", front_ends)
    with subprocess.Popen(
        [sys.executable, "-c", WHILE_READ, *flags],
        env=user_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "reading\n"
        wait_for(is_alive, "a server that listens")
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert "Traceback" not in errors


def test_the_installed_command_hears_signals_before_it_is_imported() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    value = project["scripts"]["embedding-server"]
    entry = EntryPoint("embedding-server", value, "console_scripts")
    assert entry.load() is hear_signals_then_run


def test_signals_are_left_alone_where_none_arrive() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]

    def end() -> list[object]:
        with ending_at_once():
            ignore_stop_signals()
            return [signal.getsignal(number) for number in STOP_SIGNALS]

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(end).result() == before
