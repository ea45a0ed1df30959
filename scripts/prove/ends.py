"""A signal at every moment of a command's start: how it ends, as a table.

    python -m scripts.prove.ends                       # every 10 ms; five minutes
    python -m scripts.prove.ends --step-ms 100

Each start is a process group of its own on loopback with a data folder of its own. Its first
milliseconds are Python's, before any line of this program is run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.prove.clients import SERVE
from scripts.prove.tables import options, print_table
from scripts.prove.watching import seconds_until
from tests.command_line import interruptible, user_environment

PATIENCE_S = 20
COMMANDS: dict[str, tuple[str, ...]] = {
    "serve": ("serve", "--port", "0", *SERVE),
    "serve with two front ends": ("serve", "--port", "0", "--frontends", "2", *SERVE),
    "keys create": ("keys", "create", "--name", "a"),
    "models import": ("models", "import", "absent-folder"),
    "bundle create": ("bundle", "create", "absent", "--output", "a.bundle"),
}


class Ended(NamedTuple):
    """How a command ended that was signalled."""

    code: int | None  # as shells report it; None: it did not end
    seconds: float  # from the signal to the end
    errors: str
    left_over: int  # processes that were still there a moment later

    @property
    def is_clean(self) -> bool:
        """Whether nobody saw anything of it."""
        return "Traceback" not in self.errors and "Error" not in self.errors and not self.left_over

    @property
    def is_pythons(self) -> bool:
        """Whether Python itself was interrupted, before any line of this program."""
        return "KeyboardInterrupt" in self.errors and "/server/" not in self.errors


def end_after(
    arguments: Sequence[str],
    number: signal.Signals,
    delay_s: float,
    *,
    group: bool,
    is_reached: Callable[[int], bool] = lambda _: False,
) -> Ended | None:
    """Start the command, send the signal after so long, and wait for the end; None: it was over.

    Args:
        is_reached: whether the process with this id is where it shall get the signal, if not by time.
        group: every process gets the signal, as when someone types Ctrl-C.
    """
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile(dir=home) as errors:
        with interruptible():
            running = subprocess.Popen(
                [sys.executable, "-m", "server", *arguments],
                env=user_environment({"EMBEDDING_SERVER_DATA_DIR": home}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + delay_s
        while time.monotonic() < deadline_s and not is_reached(running.pid):
            if running.poll() is not None:
                return None
            time.sleep(0.002)
        begun_s = time.perf_counter()
        (os.killpg if group else os.kill)(running.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(PATIENCE_S)
        code = running.poll()
        seconds = time.perf_counter() - begun_s
        seconds_until(lambda: not session(running.pid), 5)
        left = len(session(running.pid))
        errors.seek(0)
        for process in session(running.pid):
            os.kill(process, signal.SIGKILL)
        if code is not None and code < 0:
            code = 128 - code
        return Ended(code, seconds, errors.read().decode(), left)


def session(leader: int) -> list[int]:
    """The processes of this session that are not over."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number, *_ = stat.read_text().rpartition(")")[2].split()
            if int(number) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


def _rows(step_ms: int, most_ms: int) -> Iterator[tuple[object, ...]]:
    for name, arguments in COMMANDS.items():
        for number in (signal.SIGINT, signal.SIGTERM):
            ends: list[Ended] = []
            for delay_ms in range(0, most_ms, step_ms):
                group = number == signal.SIGINT
                end = end_after(arguments, number, delay_ms / 1000, group=group)
                if end is None:
                    break
                ends.append(end)
                if not end.is_clean:
                    print(delay_ms, end.errors[-3000:], end.left_over, file=sys.stderr)
            codes = ", ".join(f"{code}: {n}" for code, n in Counter(e.code for e in ends).items())
            dirty, pythons = sum(not e.is_clean for e in ends), sum(e.is_pythons for e in ends)
            slowest_s = max(e.seconds for e in ends)
            yield name, number.name, len(ends), codes, dirty, pythons, slowest_s


def main() -> None:
    """Print the table; what a command that did not end cleanly wrote goes to standard error."""
    given = options(__doc__, step_ms=10, most_ms=1500)
    columns = ("command", "signal", "starts", "ended with", "not clean", "Python's own",
               "slowest end, s")  # fmt: skip
    print_table(columns, _rows(given.step_ms, given.most_ms))


if __name__ == "__main__":
    main()
