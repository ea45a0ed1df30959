from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from server.engine.engine import Engine
from server.errors import Draining
from server.inference.loader import Encoder
from server.offline.engine_thread import EngineThread
from tests.engine import start_engine


def engine_threads() -> list[threading.Thread]:
    names = ("engine", "replica")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


@pytest.fixture
def engine(encoder: Encoder) -> EngineThread:
    return EngineThread(lambda: start_engine(encoder))


def test_work_runs_beside_other_work_in_the_engines_thread(engine: EngineThread) -> None:
    async def name(_: Engine) -> str:
        return threading.current_thread().name

    waiting = engine.begin(lambda _: asyncio.sleep(30))
    assert engine.begin(name).result() == "engine"
    assert not waiting.wait(0.01)
    waiting.cancel(and_wait=True)
    assert waiting.done
    assert waiting.wait(0.01)
    with pytest.raises(RuntimeError, match="closed"):
        waiting.result()
    engine.close()


@pytest.mark.parametrize(("raised", "told"), [(ValueError, ValueError), (Draining, RuntimeError)])
def test_what_work_raises_comes_out(
    engine: EngineThread, raised: type[Exception], told: type[Exception]
) -> None:
    async def fail(_: Engine) -> None:
        raise raised

    with pytest.raises(told):
        engine.begin(fail).result()
    engine.close()


def test_after_the_end_nothing_begins_and_no_thread_is_left(engine: EngineThread) -> None:
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.begin(lambda _: asyncio.sleep(0))
    assert engine_threads() == []


def test_an_engine_that_cannot_be_made_leaves_no_thread() -> None:
    def make() -> Engine:
        raise MemoryError

    with pytest.raises(MemoryError):
        EngineThread(make)
    assert engine_threads() == []


def test_a_signal_while_the_engine_is_made_leaves_no_thread() -> None:
    script = """
import signal, threading
from server.offline.engine_thread import EngineThread

class MadeEngine:
    def close(self): print("closed")
    def join(self): print("joined")

def make():
    signal.pthread_kill(main, signal.SIGINT)
    return MadeEngine()

main = threading.get_ident()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    EngineThread(make)
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate()])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n") == ["closed", "joined", "['MainThread']", ""]


def test_closing_again_waits_for_the_threads_too(engine: EngineThread) -> None:
    engine.begin_to_close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.begin(lambda _: asyncio.sleep(0))
    engine.close()
    assert engine_threads() == []


def test_an_ending_that_work_begins_is_not_waited_for_there(engine: EngineThread) -> None:
    async def close(_: Engine) -> str:
        engine.begin_to_close()
        return "done"

    closing = engine.begin(close)
    assert closing.wait(30)
    assert closing.result() == "done"
    engine.close()
