from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.inference.backend import Layout, TokenIds, forward_by_length, pad


def test_padding_is_on_the_right_and_masked() -> None:
    sequences = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    input_ids, attention_mask = pad(sequences)
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert input_ids.dtype == attention_mask.dtype == np.int64
    assert [part.shape for part in pad(sequences, 5)] == [(2, 5)] * 2
    assert [part.shape for part in pad(sequences, 2)] == [(2, 3)] * 2


@pytest.mark.parametrize(
    ("layout", "step", "share", "num_lengths"),
    [(Layout.BY_LENGTH, 2, 33, (96, 256)), (Layout.BY_COARSE_LENGTH, 8, 17, (32, 112))],
)
def test_a_padded_length_has_a_least_step_and_little_padding_and_there_are_few(
    layout: Layout, step: int, share: int, num_lengths: tuple[int, int]
) -> None:
    lengths = [layout.padded_length(n) for n in range(1, 32_769)]
    assert lengths == sorted(lengths)
    for num_tokens, length in enumerate(lengths, start=1):
        assert length % step == 0
        assert 0 <= length - num_tokens <= max(step - 1, length / share)
        assert layout.padded_length(length) == length
    assert (len(set(lengths[:256])), len(set(lengths[:8_192]))) == num_lengths


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


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=20),
    st.sampled_from([layout for layout in Layout if layout.is_by_length]),
)
def test_each_text_is_computed_with_its_own_length_in_one_pass_a_length(
    lengths: list[int], layout: Layout
) -> None:
    passes = Passes()
    vectors = forward_by_length(passes, texts(lengths), layout, sys.maxsize)
    padded = [layout.padded_length(length) for length in lengths]
    sums = [number * length for number, length in enumerate(lengths, start=1)]
    assert vectors.tolist() == [list(pair) for pair in zip(sums, padded, strict=True)]
    assert sorted(passes.shapes) == sorted((padded.count(n), n) for n in set(padded))


@pytest.mark.parametrize("most", [509, 510, 511, 512])
def test_padding_goes_no_further_than_what_the_model_reads(most: int) -> None:
    passes = Passes()
    forward_by_length(passes, texts([most, most - 1, 3]), Layout.BY_LENGTH, most)
    assert max(tokens for _, tokens in passes.shapes) == most
