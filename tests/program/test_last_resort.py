from __future__ import annotations

import subprocess
import sys

CODE = """
import threading
from server.program.last_resort import end_within
end_within({seconds})
if {hangs}:
    threading.Event().wait()
"""


def exit_code(*, seconds: float, hangs: bool) -> int:
    code = CODE.format(seconds=seconds, hangs=hangs)
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode


def test_a_process_that_hangs_ends_with_1() -> None:
    assert exit_code(seconds=0.1, hangs=True) == 1


def test_one_that_ends_by_itself_is_not_held_up() -> None:
    assert exit_code(seconds=3600, hangs=False) == 0
