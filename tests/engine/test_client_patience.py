"""What is learned of clients who leave, and how long it is believed."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from server.engine.client_patience import (
    ADDRESS,
    ALIKE,
    DOUBLES_AFTER_S,
    MAX_KEYS,
    SHORTEST_S,
    ClientPatience,
)


class Now:
    """A clock that goes on only as the test says."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def test_of_a_key_nobody_left_nothing_is_known() -> None:
    assert ClientPatience().known_s("a", 100) == math.inf


def test_the_one_who_waited_least_counts_for_its_own_key() -> None:
    patience = ClientPatience(Now())
    for waited_s in (10.0, 8.0, 20.0):
        patience.note_left("a", waited_s, 100)
    assert patience.known_s("a", 100) == 8.0
    assert patience.known_s("b", 100) == math.inf


def test_who_leaves_at_once_tells_nothing() -> None:
    patience = ClientPatience(Now())
    patience.note_left("a", SHORTEST_S / 2, 100)
    assert patience.known_s("a", 100) == math.inf


def test_of_an_address_nothing_is_learned_since_all_may_come_from_it() -> None:
    patience = ClientPatience(Now())
    patience.note_left(f"{ADDRESS}10.0.0.1", 5.0, 100)
    assert patience.known_s(f"{ADDRESS}10.0.0.1", 100) == math.inf


def test_who_leaves_a_query_says_nothing_of_who_waits_for_many_texts() -> None:
    patience = ClientPatience(Now())
    patience.note_left("a", 5.0, 100)
    assert patience.known_s("a", ALIKE * 100) == 5.0
    assert patience.known_s("a", ALIKE * 100 + 1) == math.inf
    patience.note_left("a", 50.0, 10_000)
    assert patience.known_s("a", 10_000) == 50.0


def test_what_was_learned_is_doubted_until_somebody_leaves_again() -> None:
    now = Now()
    patience = ClientPatience(now)
    patience.note_left("a", 10.0, 100)
    now.s += DOUBLES_AFTER_S
    assert patience.known_s("a", 100) == 20.0
    patience.note_left("a", 15.0, 100)
    assert patience.known_s("a", 100) == 15.0
    now.s += 1e9
    assert patience.known_s("a", 100) > 1e9


def test_of_the_keys_those_learned_last_are_known() -> None:
    patience = ClientPatience(Now())
    for number in range(MAX_KEYS + 2):
        patience.note_left(str(number), 10.0, 100)
        patience.note_left("often", 9.0, 100)
    assert patience.known_s("0", 100) == math.inf
    assert patience.known_s(str(MAX_KEYS + 1), 100) == 10.0
    assert patience.known_s("often", 100) == 9.0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1e6), st.floats(0, 1e6))))
def test_a_key_never_changes_what_is_known_of_another(left: list[tuple[str, float, float]]) -> None:
    now = Now()
    both, alone = ClientPatience(now), ClientPatience(now)
    for key, waited_s, passed_s in left:
        both.note_left(key, waited_s, 100)
        if key == "a":
            alone.note_left(key, waited_s, 100)
        now.s += passed_s
        assert both.known_s("a", 100) == alone.known_s("a", 100)
