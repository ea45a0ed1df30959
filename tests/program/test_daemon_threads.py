"""Blocking work in threads: its outcome, what it waits for, and how many threads there are."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref

import pytest

from server.program.daemon_threads import DaemonThreads


def count(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


async def test_work_gives_its_result_or_its_error_and_leaves_the_loop_free() -> None:
    threads = DaemonThreads("gives")
    may_end = threading.Event()
    waiting = threads.run(lambda: may_end.wait(30))
    assert await threads.run(lambda: threading.current_thread().daemon)
    assert not waiting.done()
    may_end.set()
    assert await waiting
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    with pytest.raises(SystemExit):
        await threads.run(sys.exit)
    with pytest.raises(RuntimeError, match="StopIteration"):  # none that a future could tell
        async with asyncio.timeout(30):
            await threads.run(lambda: next(iter(())))


async def test_work_that_comes_now_and_then_always_has_the_same_thread() -> None:
    threads = DaemonThreads("now and then")
    seen = {await threads.run(threading.get_ident) for _ in range(50)}
    assert len(seen) == 1


async def test_work_that_hangs_holds_up_no_other() -> None:
    threads = DaemonThreads("hangs")
    may_end = threading.Event()
    hanging = [threads.run(lambda: may_end.wait(30)) for _ in range(3)]
    assert [await threads.run(lambda: 1) for _ in range(20)] == [1] * 20
    assert count("hangs") == 4
    may_end.set()
    await asyncio.gather(*hanging)


async def test_of_many_threads_one_is_kept() -> None:
    threads = DaemonThreads("many")
    together = threading.Barrier(20)
    await asyncio.gather(*(threads.run(lambda: together.wait(30)) for _ in range(20)))
    async with asyncio.timeout(30):
        while count("many") > 2:  # two that end at once may both stay  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert count("many") >= 1


async def test_the_outcome_of_work_that_nobody_waits_for_is_lost() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    threads = DaemonThreads("lost")
    may_end = threading.Event()
    given_up = threads.run(lambda: may_end.wait(30))
    given_up.cancel()
    may_end.set()
    assert await threads.run(lambda: 2) == 2
    assert given_up.cancelled()
    async with asyncio.timeout(30):
        while count("lost") > 1:  # its thread has told the outcome and ended  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    assert not complaints


async def test_an_outcome_is_not_kept_in_memory() -> None:
    class Large:
        pass

    threads = DaemonThreads("memory")
    result = weakref.ref(await threads.run(Large))
    async with asyncio.timeout(30):
        while result() is not None:
            gc.collect()
            await asyncio.sleep(0.01)


def test_threads_outlive_an_event_loop_that_was_closed_and_keep_no_program_from_ending() -> None:
    script = """
import asyncio, threading
from server.program.daemon_threads import DaemonThreads

threads = DaemonThreads("test")
may_end = threading.Event()

async def leave() -> None:
    threads.run(lambda: may_end.wait(30))

async def ask() -> None:
    print(await threads.run(lambda: 1))
    threads.run(threading.Event().wait)

asyncio.run(leave())
may_end.set()
asyncio.run(ask())
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert (run.stdout, run.stderr) == ("1\n", "")
