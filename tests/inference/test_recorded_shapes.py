from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from server.inference.recorded_shapes import (
    LONGEST,
    RecordedShapes,
    packings_to_warm,
    random_lengths,
    recorded_sizes,
)

BUDGETS = st.integers(16, 200_000)
INPUTS = st.integers(1, 40_000)


@given(st.integers(1, 200_000))
def test_sizes_ascend_to_the_budget_and_waste_at_most_a_fifth(most: int) -> None:
    sizes = recorded_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for smaller, larger in itertools.pairwise(sizes):
        assert smaller < 256 or larger <= smaller * 1.25


@given(BUDGETS, INPUTS, st.lists(st.integers(1, 600), min_size=1, max_size=400))
def test_the_shape_of_a_micro_batch_is_recorded_holds_it_and_is_the_least_that_does(
    budget: int, max_input_tokens: int, lengths: list[int]
) -> None:
    lengths = [min(length, max_input_tokens) for length in lengths]
    count, tokens, longest = len(lengths), sum(lengths), max(lengths)
    shapes = RecordedShapes(budget, max_input_tokens)
    holding = [
        shape
        for shape in shapes
        if shape.slots >= count and shape.tokens >= tokens and shape.longest >= longest
    ]
    # Few tokens first, then few slots, then a low bound.
    assert shapes.fitting(count, tokens, longest) == min(holding, default=None)


@given(BUDGETS, INPUTS)
def test_every_micro_batch_of_four_tokens_a_sequence_within_the_budget_has_a_shape(
    budget: int, max_input_tokens: int
) -> None:
    shapes = RecordedShapes(budget, max_input_tokens)
    longest = min(LONGEST[-1], max_input_tokens, budget)
    assert shapes.fitting(max(1, budget // 4), budget, longest) is not None
    assert shapes.fitting(1, budget + 1, longest) is None
    assert shapes.fitting(1, longest, LONGEST[-1] + 1) is None


@given(BUDGETS, INPUTS)
def test_shapes_are_few_and_those_of_the_most_tokens_come_first(
    budget: int, max_input_tokens: int
) -> None:
    shapes = list(RecordedShapes(budget, max_input_tokens))
    assert len(shapes) == len(set(shapes))
    assert [shape.tokens for shape in shapes] == sorted((s.tokens for s in shapes), reverse=True)
    assert len(shapes) <= 5 * len(recorded_sizes(budget))


def test_a_mixed_micro_batch_gets_few_slots_and_one_of_short_queries_many() -> None:
    shapes = RecordedShapes(16_384, 256)
    assert shapes.fitting(220, 16_286, 245) == (16_384, 512, 256)
    assert shapes.fitting(1_300, 15_600, 14) == (16_384, 4_096, 128)
    assert shapes.fitting(1, 12, 12) == (16, 8, 128)


@given(st.integers(16, 5_000), INPUTS, st.lists(st.integers(1, 600), min_size=1, max_size=50))
def test_a_refused_shape_fits_nothing_and_the_next_one_does(
    budget: int, max_input_tokens: int, lengths: list[int]
) -> None:
    asked = len(lengths), sum(lengths), max(lengths)
    shapes = RecordedShapes(budget, max_input_tokens)
    seen = []
    while (shape := shapes.fitting(*asked)) is not None:
        assert shape not in seen
        assert shape.slots >= asked[0]
        assert shape.tokens >= asked[1]
        assert shape.longest >= asked[2]
        seen.append(shape)
        shapes.refused = frozenset(seen)
    assert seen == sorted(seen)


@given(st.integers(16, 20_000), INPUTS, st.randoms(use_true_random=False))
def test_a_random_packing_fits_its_shape(
    budget: int, max_input_tokens: int, chance: random.Random
) -> None:
    shape = chance.choice(list(RecordedShapes(budget, max_input_tokens)))
    lengths = random_lengths(shape, max_input_tokens, chance)
    assert 1 <= len(lengths) <= shape.slots
    assert sum(lengths) <= shape.tokens
    assert min(lengths) >= 1
    assert max(lengths) <= min(shape.longest, max_input_tokens)


@given(BUDGETS, INPUTS)
def test_what_is_warmed_up_fits_and_has_the_longest_text(
    budget: int, max_input_tokens: int
) -> None:
    packings = packings_to_warm(budget, max_input_tokens)
    longest = min(budget, max_input_tokens)
    assert [longest] in packings
    assert [1] in packings
    for lengths in packings:
        assert sum(lengths) <= budget
        assert 1 <= min(lengths) <= max(lengths) <= longest
