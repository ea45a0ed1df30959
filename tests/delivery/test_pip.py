"""Running this environment's pip from within a server process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.delivery.pip import run_pip
from server.errors import PipError
from server.program.termination import Terminated


@pytest.mark.torch  # which brings setuptools; since Python 3.12 no environment has it by itself
def test_a_process_that_ran_pip_can_still_have_setuptools_and_so_torch_compile() -> None:
    script = "from server.delivery.pip import run_pip; run_pip('help'); import setuptools"
    child = [sys.executable, "-W", "error", "-c", script]
    outcome = subprocess.run(child, capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_the_last_complaint_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)  # else it is the user who reads it
    with pytest.raises(PipError, match="unknown command"):
        run_pip("no-such-command")


def test_when_it_is_interrupted_nothing_of_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip is killed then, and cannot remove its temporary files itself."""
    used: list[Path] = []

    def interrupted(*_: object, env: dict[str, str], **__: object) -> None:
        used.append(Path(env["TMPDIR"]))
        (used[0] / "pip-unpack").mkdir()
        raise Terminated

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(Terminated):
        run_pip("download", "anything")
    assert not used[0].exists()
