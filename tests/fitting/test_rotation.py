from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from server.fitting import rotation as rotations
from server.fitting.rotation import (
    Matrix,
    fit,
    loss_and_gradient,
    loss_of,
    nearest_orthogonal,
    prefix_losses,
    principal_axes,
    protected_sizes,
    recommended_sizes,
)

Precise = NDArray[np.float64]

DIM = 48
SIZES = (24, 16, 8)


def vectors_of(texts: int) -> Matrix:
    """Unit vectors (texts, 48) whose meaning lies in 30 directions spread over all coordinates."""
    random = np.random.default_rng(0)
    spread = np.geomspace(1, 4, 30)[:, None] * random.standard_normal((30, DIM))
    meaning = random.standard_normal((texts, 30)) @ spread
    vectors = meaning + 0.5 * random.standard_normal((texts, DIM))
    unit: Matrix = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def divergence(vectors: Matrix, rotation: Matrix | Precise, size: int) -> float:
    """The objective as its definition has it, in float64: mean over texts of KL(full || prefix)."""

    def shares(rows: Precise) -> Precise:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        scaled = unit @ unit.T / rotations.TEMPERATURE
        np.fill_diagonal(scaled, -np.inf)
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        softmax: Precise = powers / powers.sum(axis=1, keepdims=True)
        return softmax

    precise = vectors.astype(np.float64)
    full, prefix = shares(precise), shares((precise @ rotation.astype(np.float64))[:, :size])
    apart = ~np.eye(len(vectors), dtype=bool)
    return float((full[apart] * np.log(full[apart] / prefix[apart])).sum() / len(vectors))


@pytest.fixture(scope="module")
def plain_vectors() -> Matrix:
    """Unit vectors (1600, 48) in clusters, whose nearest neighbours the principal axes miss."""
    random = np.random.default_rng(3)
    centers = random.standard_normal((60, DIM)) * np.geomspace(1, 3, DIM)
    near = random.standard_normal((60, 3, DIM))  # few directions in each cluster, its own ones
    cluster = random.integers(60, size=1600)
    inside = np.einsum("tk,tkd->td", random.standard_normal((1600, 3)), near[cluster])
    vectors = centers[cluster] + 0.7 * inside
    unit: Matrix = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
def start() -> Matrix:
    return principal_axes(vectors_of(300))


def test_the_loss_is_the_divergence_of_the_neighbourhoods(start: Matrix) -> None:
    vectors = vectors_of(40)
    losses = prefix_losses(vectors, start, SIZES)
    expected = [divergence(vectors, start, size) for size in SIZES]
    np.testing.assert_allclose([losses[size] for size in SIZES], expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_the_one_of_finite_differences(start: Matrix) -> None:
    vectors = vectors_of(40)
    weights = {24: 0.5, 16: 1.0, 8: 2.0}
    _, gradient = loss_and_gradient(vectors, start, weights)

    def loss(rotation: Precise) -> float:
        return sum(w * divergence(vectors, rotation, size) for size, w in weights.items())

    random = np.random.default_rng(1)
    for _ in range(10):
        direction = random.standard_normal((DIM, DIM))
        direction /= np.linalg.norm(direction)
        step = 1e-4
        slope = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=2e-3, abs=1e-4)


def test_the_fit_is_orthogonal_and_better_than_plain_truncation() -> None:
    vectors = vectors_of(600)
    rotation = fit(vectors[:300], SIZES, steps=60)
    assert rotation.dtype == np.float32
    assert np.abs(rotation.T @ rotation - np.eye(DIM)).max() < 1e-6
    plain = prefix_losses(vectors[300:], np.eye(DIM, dtype=np.float32), SIZES)
    fitted = prefix_losses(vectors[300:], rotation, SIZES)
    assert all(fitted[size] < plain[size] for size in SIZES)


def test_steps_lower_the_loss_on_texts_that_were_not_fitted_to(plain_vectors: Matrix) -> None:
    held_out, fitted = plain_vectors[:400], plain_vectors[400:]
    start = fit(fitted, SIZES, steps=0)
    weights = {size: 1 / loss for size, loss in prefix_losses(held_out, start, SIZES).items()}
    assert loss_of(held_out, fit(fitted, SIZES, steps=60), weights) < 0.97 * len(SIZES)


def test_a_fit_that_only_learns_by_heart_is_not_taken() -> None:
    vectors = vectors_of(300)  # of normal distribution, for which the principal axes are best
    assert np.array_equal(fit(vectors, SIZES, steps=60), fit(vectors, SIZES, steps=0))


def test_the_fit_is_the_same_every_time() -> None:
    vectors = vectors_of(200)
    assert np.array_equal(fit(vectors, SIZES, steps=3), fit(vectors, SIZES, steps=3))


def test_each_step_is_told() -> None:
    told: list[None] = []
    fit(vectors_of(100), SIZES, steps=4, after_step=lambda: told.append(None))
    assert len(told) == 4


def test_the_nearest_orthogonal_matrix_undoes_noise(start: Matrix) -> None:
    noisy = (start + 1e-3 * np.random.default_rng(0).standard_normal(start.shape)).astype("f4")
    mended = nearest_orthogonal(noisy)
    assert np.abs(mended.T @ mended - np.eye(DIM)).max() < 1e-6
    assert np.abs(mended - start).max() < 5e-3


@pytest.mark.parametrize(
    ("embedding_dim", "recommended", "protected"),
    [
        (384, (384, 256, 128, 64, 32), (256, 192, 128, 96, 64, 32)),
        (768, (768, 512, 256, 128, 64, 32), (512, 384, 256, 192, 128, 96, 64, 32)),
        (64, (64, 32), (32,)),
        (32, (32,), ()),
    ],
)
def test_the_sizes_follow_from_the_native_one(
    embedding_dim: int, recommended: tuple[int, ...], protected: tuple[int, ...]
) -> None:
    assert recommended_sizes(embedding_dim) == recommended
    assert protected_sizes(embedding_dim, recommended) == protected
