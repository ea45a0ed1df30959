from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.catalog.card import Card
from server.inference.loader import load_rotation
from server.inference.matryoshka import shorten

DIM = 384


@pytest.fixture(scope="module")
def rotation(matryoshka_card: Card) -> NDArray[np.float32]:
    rotation = load_rotation(matryoshka_card)
    assert rotation is not None
    return rotation


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    drawn = np.random.default_rng(0).normal(size=(50, DIM)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


@given(st.integers(1, DIM))
def test_cut_vectors_have_length_one_and_the_asked_size(
    vectors: NDArray[np.float32], rotation: NDArray[np.float32], dimensions: int
) -> None:
    for matrix in (None, rotation):
        cut = shorten(vectors, dimensions, matrix)
        assert cut.shape == (50, dimensions)
        assert cut.dtype == np.float32
        assert cut.flags.c_contiguous
        np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)


def test_without_rotation_the_cut_is_the_normalised_prefix(vectors: NDArray[np.float32]) -> None:
    prefix = vectors[:, :64]
    expected = prefix / np.linalg.norm(prefix, axis=1, keepdims=True)
    np.testing.assert_allclose(shorten(vectors, 64, None), expected, atol=1e-7)


def test_native_size_without_rotation_is_left_alone(vectors: NDArray[np.float32]) -> None:
    assert shorten(vectors, DIM, None) is vectors


def test_the_rotation_keeps_all_cosines_at_full_size(
    vectors: NDArray[np.float32], rotation: NDArray[np.float32]
) -> None:
    turned = shorten(vectors, DIM, rotation)
    np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T, atol=2e-6)
    assert np.abs(turned - vectors).max() > 0.01


def test_a_shorter_cut_is_the_prefix_of_a_longer_one(
    vectors: NDArray[np.float32], rotation: NDArray[np.float32]
) -> None:
    longer, shorter = shorten(vectors, 256, rotation), shorten(vectors, 32, rotation)
    again = longer[:, :32] / np.linalg.norm(longer[:, :32], axis=1, keepdims=True)
    np.testing.assert_allclose(again, shorter, atol=1e-6)


@given(st.integers(0, 49), st.integers(1, 50), st.sampled_from([1, 7, 32, 100, 256, 383, DIM]))
def test_a_row_has_the_same_bits_alone_and_among_any_others(
    vectors: NDArray[np.float32],
    rotation: NDArray[np.float32],
    begin: int,
    count: int,
    dimensions: int,
) -> None:
    rows = vectors[begin : begin + count]
    for matrix, layer_norm in ((rotation, False), (None, False), (None, True)):
        together = shorten(rows, dimensions, matrix, layer_norm=layer_norm)
        alone = [shorten(row[None], dimensions, matrix, layer_norm=layer_norm) for row in rows]
        assert together.tobytes() == np.concatenate(alone).tobytes()
        turned = shorten(np.asfortranarray(rows), dimensions, matrix, layer_norm=layer_norm)
        assert turned.tobytes() == together.tobytes()


def test_a_prefix_of_zeros_stays_finite() -> None:
    vectors = np.zeros((1, 4), np.float32)
    vectors[0, 3] = 1
    assert shorten(vectors, 2, None).tolist() == [[0, 0]]
