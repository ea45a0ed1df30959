"""`scripts/prove/stopped.py`, in small: with shorter waits, several servers at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from scripts.prove.stopped import attack
from tests.faults.faults import ENGINE_LOST, FRONT_END_LOST, GIVE_UP

pytestmark = pytest.mark.server

Seen = dict[str, dict[str, object]]
# What is lost soon is what is waited for; a loaded machine may be silent, too.
NEVER: dict[str, float] = {FRONT_END_LOST: 600, ENGINE_LOST: 600}
FRONT_END_SOON = {**NEVER, FRONT_END_LOST: 5}
ENGINE_SOON = {**NEVER, ENGINE_LOST: 6}
DEVICE_SOON = {**NEVER, GIVE_UP: 6}


@pytest.fixture(scope="module")
def seen() -> Iterator[Callable[[str], dict[str, object]]]:
    """What is seen under an attack; servers are attacked beside each other, since they wait."""
    with ThreadPoolExecutor(4) as threads:
        servers: list[Future[Seen]] = [
            threads.submit(attack, *names, frontends=frontends, waits=waits)
            for names, frontends, waits in (
                (("front end stopped", "engine stopped, then continued"), 2, FRONT_END_SOON),
                (("front end killed", "engine stopped for good"), 2, ENGINE_SOON),
                (("device fails for good",), 1, DEVICE_SOON),
                (("device fails for good, two front ends",), 2, DEVICE_SOON),
            )
        ]
        yield lambda name: {n: found for one in servers for n, found in one.result().items()}[name]


def test_a_stopped_engine_process_is_told_at_once_until_it_goes_on(
    seen: Callable[[str], dict[str, object]],
) -> None:
    found = seen("engine stopped, then continued")
    assert (found["waiting"], found["request"], found["livez"]) == (503, 503, 200)
    assert "never" not in found.values()
    assert found["request then"] == 200


def test_an_engine_process_that_does_not_go_on_ends_with_its_front_ends(
    seen: Callable[[str], dict[str, object]],
) -> None:
    found = seen("engine stopped for good")
    assert (found["exit code"], found["livez"]) == (-9, "ConnectError")


def test_a_stopped_front_end_is_replaced(
    seen: Callable[[str], dict[str, object]],
) -> None:
    found = seen("front end stopped")
    assert "never" not in found.values()
    assert found["requests then"] == [200]


def test_what_a_killed_front_end_has_counted_stays(
    seen: Callable[[str], dict[str, object]],
) -> None:
    found = seen("front end killed")
    assert (found["answered"], found["counted"]) == (20, 20)


@pytest.mark.parametrize("more", ["", ", two front ends"])
def test_a_device_that_fails_for_good_ends_the_server(
    seen: Callable[[str], dict[str, object]], more: str
) -> None:
    found = seen(f"device fails for good{more}")
    assert found["requests"] == [500, 500, 500, 503]
    assert (found["exit code"], found["livez"]) == (1, "ConnectError")
