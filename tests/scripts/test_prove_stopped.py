"""`scripts/prove/stopped.py`, in small: with shorter waits, several servers at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from scripts.prove.stopped import ATTACKS, attack
from tests.faults.faults import ENGINE_LOST, FRONT_END_LOST, GIVE_UP

pytestmark = pytest.mark.server

# Each only where it is waited for: a loaded machine may be silent, too.
WAITS: dict[str, dict[str, float]] = {
    "engine stopped for good": {ENGINE_LOST: 6},
    "front end stopped": {FRONT_END_LOST: 5},
    "device fails for good": {GIVE_UP: 6},
    "device fails for good, two front ends": {GIVE_UP: 6},
}
NEVER: dict[str, float] = {ENGINE_LOST: 600, FRONT_END_LOST: 600}
TAKES_TOO_LONG = {"all stopped for 15 s"}


@pytest.fixture(scope="module")
def attacks() -> Iterator[dict[str, Future[dict[str, object]]]]:
    """All of them; they wait, for the most part."""
    with ThreadPoolExecutor(4) as threads:
        yield {
            name: threads.submit(attack, name, WAITS.get(name, NEVER))
            for name in ATTACKS
            if name not in TAKES_TOO_LONG
        }


def test_a_stopped_engine_process_is_told_at_once_until_it_goes_on(
    attacks: dict[str, Future[dict[str, object]]],
) -> None:
    seen = attacks["engine stopped, then continued"].result()
    assert (seen["waiting"], seen["request"], seen["livez"]) == (503, 503, 200)
    assert "never" not in seen.values()
    assert seen["request then"] == 200


def test_an_engine_process_that_does_not_go_on_ends_with_its_front_ends(
    attacks: dict[str, Future[dict[str, object]]],
) -> None:
    seen = attacks["engine stopped for good"].result()
    assert (seen["exit code"], seen["livez"]) == (-9, "ConnectError")


def test_a_stopped_front_end_is_replaced(attacks: dict[str, Future[dict[str, object]]]) -> None:
    seen = attacks["front end stopped"].result()
    assert "never" not in seen.values()
    assert seen["requests then"] == [200]


def test_what_a_killed_front_end_has_counted_stays(
    attacks: dict[str, Future[dict[str, object]]],
) -> None:
    seen = attacks["front end killed"].result()
    assert (seen["answered"], seen["counted"]) == (20, 20)


@pytest.mark.parametrize("more", ["", ", two front ends"])
def test_a_device_that_fails_for_good_ends_the_server(
    attacks: dict[str, Future[dict[str, object]]], more: str
) -> None:
    seen = attacks[f"device fails for good{more}"].result()
    assert seen["requests"] == [500, 500, 500, 503]
    assert (seen["exit code"], seen["livez"]) == (1, "ConnectError")
