"""By real commands, since Python opens its streams before any of our code runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import user_environment

STREAMS = {"<&-": 0, ">&-": 1, "2>&-": 2}
# Writes which files the three are, and which a child process has for the first and the last.
LOOK = """
import json, os, subprocess, sys
from server.program.standard_streams import open_standard_streams
open_standard_streams()
assert all((sys.stdin, sys.stdout, sys.stderr))
ours = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
command = ["readlink", "/proc/self/fd/0", "/proc/self/fd/2"]
theirs = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()
with open(sys.argv[1], "w") as seen:
    json.dump([ours, theirs], seen)
"""


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run this command line, in which $P is Python."""
    environment = {**user_environment(), "P": sys.executable}
    return subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("closed", [*STREAMS, "<&- >&- 2>&-"])
def test_a_closed_stream_is_opened_on_nothing_before_anything_else_is(
    closed: str, tmp_path: Path
) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", LOOK]
    subprocess.run([*command, str(tmp_path / "seen")], check=True, timeout=60)
    ours, theirs = json.loads((tmp_path / "seen").read_text())
    for number in (STREAMS[one] for one in closed.split()):
        assert ours[number] == os.devnull
    for number, child in ((0, theirs[0]), (2, theirs[1])):
        assert (ours[number] == os.devnull) == (child == os.devnull)


@pytest.mark.parametrize("command", ["--help", "models list"])
def test_output_without_room_is_one_line_and_exit_code_2(command: str) -> None:
    outcome = shell(f"exec $P -m server {command} >/dev/full")
    assert outcome.stderr == "embedding-server: standard output: No space left on device\n"
    assert outcome.returncode == 2


@pytest.mark.parametrize("command", ["--help", "models list"])
def test_a_reader_who_has_left_is_no_news(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        outcome = subprocess.run(
            [sys.executable, "-m", "server", *command.split()],
            stdout=gone,
            stderr=subprocess.PIPE,
            env=user_environment(),
            timeout=60,
            check=False,
        )
    assert (outcome.stderr, outcome.returncode) == (b"", 1)


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_commands_do_without_a_stream_that_is_closed(closed: str) -> None:
    outcome = shell(f"exec $P -m server models list {closed}")
    assert (outcome.stderr, outcome.returncode) == ("", 0)
    assert ("all-MiniLM-L6-v2" in outcome.stdout) == (">&-" not in closed.split())


def test_a_mistake_is_told_although_output_has_no_room() -> None:
    outcome = shell("exec $P -m server serve --model nope >/dev/full")
    assert outcome.stderr.startswith("embedding-server: model nope not found")
    assert outcome.returncode == 2
