from __future__ import annotations

from server.engine.batch_budget import RAISE_BUDGET_AFTER, BatchBudget


def test_the_budget_becomes_half_of_what_did_not_fit() -> None:
    budget = BatchBudget(256)
    assert budget.lower(200) == budget.tokens == 100
    assert budget.lower(200) == 100  # another worker's, taken before
    assert budget.lower(100) == 50
    assert budget.lower(3) == 16  # memory is too short for anything
    assert budget.lower(200) == 16
    assert BatchBudget(4).lower(1) == 1


def test_a_lowered_budget_is_doubled_whenever_it_has_been_enough_for_long() -> None:
    budget = BatchBudget(512)
    budget.lower(256)
    found = []
    for _ in range(3 * RAISE_BUDGET_AFTER):
        budget.count_batch()
        found.append(budget.tokens)
    assert found.count(128) == RAISE_BUDGET_AFTER
    assert found.count(256) == RAISE_BUDGET_AFTER + 1
    assert found == sorted(found)
    assert found[-1] == 512


def test_who_lowers_it_again_starts_the_count_again() -> None:
    budget = BatchBudget(512)
    budget.lower(256)
    for _ in range(RAISE_BUDGET_AFTER):
        budget.count_batch()
    budget.lower(256)
    budget.count_batch()
    assert budget.tokens == 128


def test_it_is_never_raised_beyond_what_it_was() -> None:
    budget = BatchBudget(100)
    budget.lower(120)
    for _ in range(3 * RAISE_BUDGET_AFTER):
        budget.count_batch()
    assert budget.tokens == 100
