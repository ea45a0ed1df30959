from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.fair_share import FairShare
from server.engine.length_index import LengthIndex
from server.engine.sequence import SequenceGroup, TokenSequence
from server.inference.backend import Layout
from tests.engine import groups_of

some_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def indexed(
    *requests: tuple[str, list[int]], layout: Layout = Layout.PADDED
) -> tuple[LengthIndex, list[SequenceGroup]]:
    """An index in which these requests can be chosen, their keys all at their start."""
    index, shares, groups = LengthIndex(layout), FairShare(), groups_of(requests)
    for group in groups:
        group.share = shares.enter(group.key, group.num_tokens)
        index.add(group.sequences)
    return index, groups


def lengths(sequences: list[TokenSequence]) -> list[int]:
    return [sequence.num_tokens for sequence in sequences]


@given(some_lengths, st.integers(1, 600), st.sampled_from(Layout))
def test_whatever_is_taken_is_not_there_any_more_and_all_else_is(
    tokens: list[int], budget: int, layout: Layout
) -> None:
    index, (group,) = indexed(("A", tokens), layout=layout)
    left = list(group.sequences)
    while left:
        taken = index.take(left[0], budget, most_start_tokens=0)
        assert left[0] in taken
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(left)
        left = [sequence for sequence in left if sequence not in taken]
        assert len(index) == len(left)


def test_what_goes_along_is_of_similar_length_and_equally_long_ones_go_as_they_came() -> None:
    index, (one, other) = indexed(("A", [200, 30, 33]), ("B", [33, 31, 5, 33]))
    taken = index.take(one.sequences[2], 5 * 33, most_start_tokens=0)
    assert lengths(taken) == [30, 31, 33, 33, 33]
    assert [sequence.group for sequence in taken[2:]] == [one, other, other]
    assert len(index) == 2


def test_equally_long_ones_that_came_before_the_head_go_along() -> None:
    index, (group,) = indexed(("A", [50, 50, 50]))
    assert set(index.take(group.sequences[1], 150, most_start_tokens=0)) == set(group.sequences)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [(Layout.PACKED, [3, 100, 300]), (Layout.PADDED, [300]), (Layout.BY_LENGTH, [300])],
)
def test_packed_what_is_unlike_goes_along(layout: Layout, expected: list[int]) -> None:
    index, (group,) = indexed(("A", [300, 3, 100]), layout=layout)
    assert lengths(index.take(group.sequences[0], 512, most_start_tokens=0)) == expected


BY_LENGTH = [layout for layout in Layout if layout.is_by_length]


def test_by_length_what_has_the_heads_padded_length_goes_along_as_it_came() -> None:
    index, (one, other) = indexed(
        ("A", [12, 14, 13, 13]), ("B", [14, 15, 12, 14]), layout=Layout.BY_LENGTH
    )
    assert lengths(index.take(one.sequences[2], 5 * 14, most_start_tokens=0)) == [
        13,
        14,
        13,
        14,
        14,
    ]
    assert lengths(index.take(one.sequences[0], 14, most_start_tokens=0)) == [12]
    assert lengths(index.take(other.sequences[1], 1000, most_start_tokens=0)) == [15]
    assert lengths(index.take(other.sequences[2], 1000, most_start_tokens=0)) == [12]


@given(some_lengths, st.integers(1, 600), st.sampled_from(BY_LENGTH))
def test_by_length_all_that_fits_goes_along_and_nothing_of_another_length(
    tokens: list[int], budget: int, layout: Layout
) -> None:
    index, (group,) = indexed(("A", tokens), layout=layout)
    head, padded = group.sequences[0], layout.padded_length(tokens[0])
    taken = index.take(head, budget, most_start_tokens=0)
    alike = [one for one in group.sequences[1:] if layout.padded_length(one.num_tokens) == padded]
    assert set(taken) == {head, *alike[: max(0, budget // padded - 1)]}


def test_keys_that_are_too_far_ahead_stay_where_they_are() -> None:
    index, (mine, near, far) = indexed(("mine", [50]), ("near", [49, 52]), ("far", [51, 50]))
    near.share.start_tokens, far.share.start_tokens = 90.0, 91.0
    taken = index.take(mine.sequences[0], 512, most_start_tokens=90.0)
    assert taken == [near.sequences[0], mine.sequences[0], near.sequences[1]]
    assert set(index.take(far.sequences[0], 512, most_start_tokens=91.0)) == set(far.sequences)


def test_the_head_is_taken_however_far_its_key_is_ahead_and_however_long_it_is() -> None:
    index, (group,) = indexed(("A", [300]))
    group.share.start_tokens = 1_000.0
    assert index.take(group.sequences[0], 10, most_start_tokens=0) == group.sequences


def test_what_was_dropped_is_discarded() -> None:
    index, (gone, there) = indexed(("A", [10, 20]), ("A", [15]))
    gone.num_waiting = 0
    index.discard_dropped()
    assert len(index) == 1
    assert index.take(there.sequences[0], 512, most_start_tokens=0) == there.sequences
