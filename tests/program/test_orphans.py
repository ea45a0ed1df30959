from __future__ import annotations

import subprocess
import sys

import psutil

from tests.waiting import wait_for

CHILD = """
import sys
from server.program.orphans import go_on_without_parent
go_on_without_parent()
print("begun", flush=True)
sys.stdin.read()
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_stopped_child_goes_on_and_ends_when_its_parent_is_gone() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    # In a session of its own, as under systemd: else the kernel itself may tell the child.
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        said = {parent.stdout.readline(), parent.stdout.readline()} - {b"begun\n"}
        child = psutil.Process(int(said.pop()))
        child.suspend()
        parent.kill()
        parent.wait()
        wait_for(lambda: not child.is_running(), "the child's end")
