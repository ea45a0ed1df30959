from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from server.engine import resident_memory
from server.engine.resident_memory import ResidentMemory, resident_bytes

SIZE = 64_000_000

# Threads that each allocate much in small pieces and free it: what glibc keeps of it.
KEEP = """
import sys, threading
from server.engine.resident_memory import give_back_freed_memory, resident_bytes
if sys.argv[1] == "give back":
    give_back_freed_memory()
bytes(30_000_000)  # freed at once: from then on glibc keeps much
together = threading.Barrier(4)
def work():
    pieces = [bytes(20_000) for _ in range(1500)]
    together.wait()
    del pieces
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
before = resident_bytes()
for thread in threads: thread.start()
for thread in threads: thread.join()
print(resident_bytes() - before)
"""


def test_resident_memory_is_what_the_system_says() -> None:
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_a_change_tells_what_was_added() -> None:
    # A mapping of its own: malloc may answer with memory that the process already holds.
    with ResidentMemory().change() as growth, mmap.mmap(-1, SIZE) as added:
        for start in range(0, SIZE, mmap.PAGESIZE):
            added[start] = 1
        found = growth()
    assert found is not None
    assert abs(found - SIZE) < SIZE / 4


def test_changes_at_the_same_time_cannot_be_told_apart() -> None:
    memory = ResidentMemory()
    with memory.change() as first:
        assert first() is not None
        with memory.change() as second:
            assert first() is second() is None
        assert first() is None  # it is not known whose memory that was
    with memory.change() as third:
        assert third() is not None


def test_a_system_that_does_not_tell_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_memory, "_STATM", Path("/nowhere/statm"))
    assert resident_bytes() is None
    with ResidentMemory().change() as growth:
        assert growth() is None


def test_what_threads_freed_goes_back_to_the_system() -> None:
    kept = {
        wanted: int(
            subprocess.run(
                [sys.executable, "-c", KEEP, wanted], capture_output=True, text=True, check=True
            ).stdout
        )
        for wanted in ("give back", "keep")
    }
    assert kept["give back"] < 10e6 < 40e6 < kept["keep"]
