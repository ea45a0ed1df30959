"""Runs this environment's pip.

Knows nothing of models or bundles. pip's own lines and progress bar go to standard error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from server.errors import PipError
from server.program.command_lines import has_pip

_STDERR = 2


def run_pip(command: str, *arguments: str) -> None:
    """Run one of pip's commands; where it fetches from is told by pip's own settings.

    It is ended, and its temporary files are removed, when this process is interrupted.

    Raises:
        PipError: there is no pip, or it failed; the message is the last line of its complaint.
    """
    if not has_pip():
        raise PipError("this Python environment has no pip")
    on_terminal = sys.stderr.isatty()
    # What pip has started itself may outlive it for a moment.
    with tempfile.TemporaryDirectory(
        prefix="embedding-server-", ignore_cleanup_errors=True
    ) as scratch:
        outcome = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", command, *arguments],
            stdout=_STDERR if on_terminal else subprocess.DEVNULL,
            stderr=None if on_terminal else subprocess.PIPE,
            env={**os.environ, "TMPDIR": scratch},
            text=True,
            check=False,
        )
    if outcome.returncode != 0:
        lines = [line.strip() for line in (outcome.stderr or "").splitlines() if line.strip()]
        # Some versions indent the complaints of a process of their own, and end with advice.
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip: {outcome.returncode}"
        raise PipError(reason)
