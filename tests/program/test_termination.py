"""How signals end a command."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint

import pytest

from server.__main__ import main as hear_signals_then_run
from server.commands import cli
from server.program.termination import (
    STOP_SIGNALS,
    Terminated,
    ending_at_once,
    ignore_stop_signals,
    raise_when_terminated,
)
from tests.conftest import REPOSITORY

# Ends while a thread works that Python would wait for.
AT_ONCE = """
import signal, sys, threading
from server.program.termination import ending_at_once, raise_when_terminated

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
raise_when_terminated()
threading.Thread(target=threading.Event().wait).start()
with ending_at_once():
    signal.raise_signal(int(sys.argv[1]))
"""

# Gets the signal as soon as it begins to import what the commands are made of.
WHILE_IMPORTED = """
import runpy, signal, sys

class Finder:
    def find_spec(name, *rest):
        if name == "server.commands.cli":
            signal.raise_signal(int(sys.argv[1]))

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
sys.meta_path.insert(0, Finder)
runpy.run_module("server", run_name="__main__")
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
    raise_when_terminated()
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_ends_with_the_same_code_while_it_is_imported(
    number: signal.Signals, code: int
) -> None:
    child = [sys.executable, "-c", WHILE_IMPORTED, str(int(number))]
    outcome = subprocess.run(child, capture_output=True, text=True, timeout=60, check=False)
    assert (outcome.returncode, outcome.stderr) == (code, "")


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
