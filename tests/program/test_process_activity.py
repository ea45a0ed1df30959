from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from server.program.process_activity import ProcessActivity
from tests.waiting import wait_for


@contextmanager
def python(program: str) -> Iterator[psutil.Process]:
    """A process that runs it and has begun."""
    command = [sys.executable, "-c", f"import time; print(flush=True); {program}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        try:
            yield psutil.Process(running.pid)
        finally:
            running.kill()


def test_a_process_is_at_work_until_it_is_stopped() -> None:
    with python("sum(range(10**12))") as process:
        activity = ProcessActivity(process.pid)
        assert activity.is_at_work()
        process.suspend()
        wait_for(lambda: not activity.is_at_work(), "a process that does nothing")
        process.resume()
        wait_for(activity.is_at_work, "a process that goes on")


def test_work_since_the_last_look_counts() -> None:
    with python("time.sleep(60)") as process:
        activity = ProcessActivity(process.pid)
        wait_for(lambda: not activity.is_at_work(), "a process that sleeps")
        assert activity._done is not None
        activity._done = activity._done._replace(ticks=activity._done.ticks - 1)
        assert activity.is_at_work()
        assert not activity.is_at_work()


def test_a_process_that_is_gone_is_not_at_work() -> None:
    with python("pass") as process:
        process.wait()
        assert not ProcessActivity(process.pid).is_at_work()
