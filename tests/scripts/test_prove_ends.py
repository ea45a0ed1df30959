"""`scripts/prove/ends.py`, in small: the moments are known by what the process has done."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.prove.ends import COMMANDS, PATIENCE_S, end_after, session

pytestmark = pytest.mark.server


def has_loaded(library: str) -> Callable[[int], bool]:
    return lambda process: library in Path(f"/proc/{process}/maps").read_text()


def has_front_ends(process: int) -> bool:
    return len(session(process)) == 3


MOMENTS = {
    "settings": has_loaded("_pydantic_core"),
    "models": has_loaded("onnxruntime_pybind11_state"),
    "front ends": has_front_ends,
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_the_start_leaves_nothing_and_says_nothing(
    moment: str, number: signal.Signals
) -> None:
    end = end_after(
        COMMANDS["serve with two front ends"],
        number,
        PATIENCE_S,
        group=number == signal.SIGINT,
        is_reached=MOMENTS[moment],
    )
    assert end is not None
    assert end.is_clean, end
    # A server that has handlers of its own ends with 0, and which comes first is a race.
    assert end.code in ((0,) if moment == "front ends" else (0, 128 + number))
