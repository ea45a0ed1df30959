from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.engine.policy import MAX_PADDING, MIN_FILL, select

lengths_and_head = st.lists(st.integers(1, 600), min_size=1, max_size=80).flatmap(
    lambda lengths: st.tuples(st.just(sorted(lengths)), st.integers(0, len(lengths) - 1))
)
budgets = st.integers(1, 2048)


def allowed(run: tuple[int, ...], budget: int) -> bool:
    """The rules in words: within the budget, and little padding once a quarter is full."""
    padded = len(run) * max(run)
    return padded <= budget and (4 * padded <= budget or 8 * (padded - sum(run)) <= padded)


@pytest.mark.parametrize("count", range(1, 6))
def test_every_small_case_keeps_the_rules_and_leaves_no_neighbour_out(count: int) -> None:
    assert (MIN_FILL, MAX_PADDING) == (1 / 4, 1 / 8)
    for lengths in itertools.combinations_with_replacement(range(1, 9), count):
        for head, budget in itertools.product(range(count), range(1, 49)):
            start, stop = select(lengths, head, budget)
            assert 0 <= start <= head < stop <= count
            assert stop - start == 1 or allowed(lengths[start:stop], budget)
            assert start == 0 or not allowed(lengths[start - 1 : stop], budget)
            assert stop == count or not allowed(lengths[start : stop + 1], budget)


@given(lengths_and_head, budgets)
@example(([72, 100, 130, 130, 130, 130], 1), 790)
def test_no_neighbour_is_left_out(case: tuple[list[int], int], budget: int) -> None:
    lengths, head = case
    start, stop = select(lengths, head, budget)
    assert start == 0 or not allowed(tuple(lengths[start - 1 : stop]), budget)
    assert stop == len(lengths) or not allowed(tuple(lengths[start : stop + 1]), budget)


@given(lengths_and_head, budgets)
def test_the_most_urgent_sequence_is_always_chosen(
    case: tuple[list[int], int], budget: int
) -> None:
    lengths, head = case
    start, stop = select(lengths, head, budget)
    assert 0 <= start <= head < stop <= len(lengths)


@given(lengths_and_head, budgets)
def test_the_budget_counts_padding_and_is_exceeded_only_by_a_lone_sequence(
    case: tuple[list[int], int], budget: int
) -> None:
    lengths, head = case
    start, stop = select(lengths, head, budget)
    padded = (stop - start) * lengths[stop - 1]
    assert padded <= budget or stop - start == 1


@given(lengths_and_head, budgets)
def test_padding_is_bounded_once_the_micro_batch_is_a_quarter_full(
    case: tuple[list[int], int], budget: int
) -> None:
    lengths, head = case
    start, stop = select(lengths, head, budget)
    padded = (stop - start) * lengths[stop - 1]
    padding = padded - sum(lengths[start:stop])
    assert stop - start == 1 or padded <= MIN_FILL * budget or padding <= MAX_PADDING * padded


@given(st.integers(1, 64), st.integers(1, 40), st.data())
def test_sequences_of_one_length_fill_the_budget(
    length: int, count: int, data: st.DataObject
) -> None:
    head = data.draw(st.integers(0, count - 1))
    budget = data.draw(st.integers(length, 64 * 40))
    start, stop = select([length] * count, head, budget)
    assert stop - start == min(count, budget // length)


def test_neighbours_nearest_in_length_are_preferred() -> None:
    # 100 and 104 are nearer to 101 than 80 is; three times 104 is just within the budget.
    assert select([20, 80, 100, 101, 104, 300], head=3, max_batch_tokens=312) == (2, 5)


def test_a_long_text_does_not_make_a_short_one_pay_for_its_padding() -> None:
    assert select([8, 250], head=0, max_batch_tokens=512) == (0, 1)


def test_of_equal_lengths_those_behind_the_head_come_first() -> None:
    # The queue orders equal lengths by urgency, so the next urgent ones stand to the right.
    assert select([10] * 6, head=2, max_batch_tokens=30) == (2, 5)


@given(lengths_and_head, budgets)
def test_packed_the_budget_counts_tokens_and_no_neighbour_that_fits_is_left_out(
    case: tuple[list[int], int], budget: int
) -> None:
    lengths, head = case
    start, stop = select(lengths, head, budget, packed=True)
    assert start <= head < stop
    total = sum(lengths[start:stop])
    assert total <= budget or stop - start == 1
    assert start == 0 or total + lengths[start - 1] > budget
    assert stop == len(lengths) or total + lengths[stop] > budget
