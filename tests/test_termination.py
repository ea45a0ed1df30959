"""How signals end a command."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from server import cli
from server.termination import Terminated, raise_when_terminated

# Ends while a thread works that Python would wait for.
AT_ONCE = """
import signal, sys, threading
from server.termination import ending_at_once, raise_when_terminated

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
raise_when_terminated()
threading.Thread(target=threading.Event().wait).start()
with ending_at_once():
    signal.raise_signal(int(sys.argv[1]))
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
