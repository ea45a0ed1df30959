from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.inference.backend import TokenIds, forward_by_length, pad, padded_length


def test_padding_is_on_the_right_and_masked() -> None:
    sequences = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    input_ids, attention_mask = pad(sequences)
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert input_ids.dtype == attention_mask.dtype == np.int64
    assert [part.shape for part in pad(sequences, 5)] == [(2, 5)] * 2
    assert [part.shape for part in pad(sequences, 2)] == [(2, 3)] * 2


def test_a_padded_length_is_even_and_at_most_a_33rd_of_it_is_padding() -> None:
    lengths = [padded_length(n) for n in range(1, 32_769)]
    assert lengths == sorted(lengths)
    for num_tokens, length in enumerate(lengths, start=1):
        assert length % 2 == 0
        assert 0 <= length - num_tokens <= max(1, length / 33)
        assert padded_length(length) == length
    assert len(set(lengths[:256])) == 96
    assert len(set(lengths[:8_192])) == 256


class Passes:
    """What was computed, and for each text (its ids' sum, the length it was computed with)."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        self.shapes.append(input_ids.shape)
        length = np.full(len(input_ids), input_ids.shape[1])
        return np.stack(
            [(input_ids * attention_mask).sum(axis=1), length], axis=1, dtype=np.float32
        )


def texts(lengths: Sequence[int]) -> list[TokenIds]:
    return [np.full(length, number, np.int32) for number, length in enumerate(lengths, start=1)]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_each_text_is_computed_with_its_own_length_in_one_pass_a_length(lengths: list[int]) -> None:
    passes = Passes()
    vectors = forward_by_length(passes, texts(lengths), sys.maxsize)
    padded = [padded_length(length) for length in lengths]
    sums = [number * length for number, length in enumerate(lengths, start=1)]
    assert vectors.tolist() == [list(pair) for pair in zip(sums, padded, strict=True)]
    assert sorted(passes.shapes) == sorted((padded.count(n), n) for n in set(padded))


@pytest.mark.parametrize("most", [509, 510, 511, 512])
def test_padding_goes_no_further_than_what_the_model_reads(most: int) -> None:
    passes = Passes()
    forward_by_length(passes, texts([most, most - 1, 3]), most)
    assert max(tokens for _, tokens in passes.shapes) == most
