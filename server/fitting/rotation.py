"""Learning the orthogonal matrix that makes prefixes of a model's vectors useful (Matryoshka).

A vector `v` of unit length becomes `v @ rotation`. The matrix is orthogonal, so cosines at full
size stay as they are; it only moves what matters to the front.

The objective is that of stochastic neighbour embedding (Hinton and Roweis, 2002) with cosines: the
softmax of a text's cosines with the others at full size is what the prefixes shall give again
(KL divergence, mean over texts, each prefix weighted by the inverse of its value at the start).
The minimum is sought from the principal axes on by Adam (Kingma and Ba, arXiv:1412.6980) on the
rotation group: moments are kept in its Lie algebra, the skew-symmetric matrices, moved along from
step to step by the group itself (Riemannian adaptive methods: Bécigneul and Ganea,
arXiv:1810.00760), and each step is a Cayley transform, which stays orthogonal (Wen and Yin,
Mathematical Programming 142, 2013; Li, Fuxin, Todorovic, arXiv:2002.01113).

Pure mathematics on numpy arrays: knows no files, no models. One call uses one core, and more in
matrix products. The same vectors, machine and versions give the same matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

SEED = 0
STEPS = 400
CHECK_STEPS = 20  # steps between two looks at texts that are not fitted to
BATCH_VECTORS = 1024
LEARNING_RATE = 0.002  # at 0.01 Adam loses more of the principal axes than it gains
# Divided by 0.05, the nearest few texts dominate a softmax over cosines, as they do a search.
TEMPERATURE = 0.05
SMALLEST_SIZE = 32
_MOMENTUM, _SQUARES, _EPSILON = 0.9, 0.999, 1e-8  # Adam's, as its paper has them


def recommended_sizes(embedding_dim: int) -> tuple[int, ...]:
    """The native size and the powers of two below it, down to 32; largest first."""
    powers = [2**power for power in range(5, 32) if 2**power < embedding_dim]
    return (embedding_dim, *reversed(powers))


def protected_sizes(embedding_dim: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Prefixes whose neighbours a fit protects: `sizes` below the native one, and sizes between.

    Half way between 64 and 128, say, directions would otherwise come in any order.
    """
    kept = sorted({size for size in sizes if size < embedding_dim})
    between = {(low + high) // 2 for low, high in pairwise(kept) if high >= 4 * SMALLEST_SIZE}
    return tuple(sorted({*kept, *between}, reverse=True))


class Neighbourhood(NamedTuple):
    """Of each text, how near the others are: all float32."""

    shares: Matrix  # (texts, texts), softmax of the cosines, 0 for a text itself
    entropy_term: NDArray[np.float32]  # (texts,), sum of shares times their logarithm


def neighbourhood(vectors: Matrix) -> Neighbourhood:
    """Softmax over the cosines of full-size vectors (texts, embedding_dim) of any length."""
    unit, _ = _unit(vectors)
    scaled, shares, log_sums = _softmax(unit)
    return Neighbourhood(shares, np.einsum("ij,ij->i", shares, scaled) - log_sums)


def prefix_loss(target: Neighbourhood, prefix: Matrix) -> tuple[float, Matrix]:
    """How far the neighbours by a prefix are from the target's, and the gradient by the prefix.

    With unit vectors U, scaled cosines S = U Uᵀ / τ, their softmax Q and the target P, the loss is
    the mean over texts of KL(P || Q) = Σ P log P - Σ P S + log Σ exp S. So dL/dS = (Q - P) / n,
    dL/dU = (dL/dS + dL/dSᵀ) U / τ, and dL/dY is what is left of dL/dU across U, over |Y|.

    Args:
        prefix: (texts, size), float32, of any length.

    Returns:
        The loss in nats, and its gradient (texts, size).
    """
    texts = len(prefix)
    unit, lengths = _unit(prefix)
    scaled, shares, log_sums = _softmax(unit)
    crossed = np.einsum("ij,ij->i", target.shares, scaled)
    loss = float(np.mean(target.entropy_term - crossed + log_sums, dtype=np.float64))
    shares -= target.shares
    across = shares @ unit
    across += shares.T @ unit
    across -= unit * np.einsum("ij,ij->i", unit, across)[:, None]
    across /= lengths * np.float32(texts * TEMPERATURE)
    return loss, across


def loss_and_gradient(
    vectors: Matrix, rotation: Matrix, weights: Mapping[int, float]
) -> tuple[float, Matrix]:
    """The weighted sum of all prefixes' losses, and its gradient by `rotation` as a free matrix.

    Args:
        vectors: (texts, embedding_dim), float32.
        rotation: (embedding_dim, embedding_dim), float32.
        weights: by prefix size.
    """
    target = neighbourhood(vectors)
    rotated = vectors @ rotation
    total = 0.0
    by_rotated = np.zeros_like(rotated)
    for size, weight in weights.items():
        loss, gradient = prefix_loss(target, rotated[:, :size])
        total += weight * loss
        by_rotated[:, :size] += np.float32(weight) * gradient
    return total, vectors.T @ by_rotated


def prefix_losses(vectors: Matrix, rotation: Matrix, sizes: tuple[int, ...]) -> dict[int, float]:
    """Each prefix's loss in nats, by size."""
    target = neighbourhood(vectors)
    rotated = vectors @ rotation
    return {size: prefix_loss(target, rotated[:, :size])[0] for size in sizes}


def principal_axes(vectors: Matrix) -> Matrix:
    """The eigenvectors of `vectors.T @ vectors` as columns, largest eigenvalue first.

    (embedding_dim, embedding_dim), float32. The mean stays in, because cosines keep it too.
    """
    precise = vectors.astype(np.float64)
    _, axes = np.linalg.eigh(precise.T @ precise)
    return np.ascontiguousarray(axes[:, ::-1], dtype=np.float32)


def fit(
    vectors: Matrix,
    sizes: tuple[int, ...],
    *,
    steps: int = STEPS,
    after_step: Callable[[], None] = lambda: None,
) -> Matrix:
    """The rotation for these vectors: (embedding_dim, embedding_dim), float32, orthogonal.

    A part of the vectors is not fitted to but tells which step's matrix is best: of a few thousand
    texts Adam learns by heart what does not hold for others, and then the principal axes of all
    are taken.

    Args:
        vectors: (texts, embedding_dim), float32, of unit length, in random order.
        sizes: prefixes to protect, see `protected_sizes`.
        after_step: called `steps` times.
    """
    random = np.random.default_rng(SEED)
    checked = min(BATCH_VECTORS, len(vectors) // 5)
    check, fitted = vectors[:checked], vectors[checked:]
    rotation = principal_axes(fitted)
    # Principal axes lose far more at 32 than at 256: unweighted, 32 would be all that counts.
    start = prefix_losses(fitted[:BATCH_VECTORS], rotation, sizes)
    weights = {size: 1 / max(loss, 1e-6) for size, loss in start.items()}
    best, least = principal_axes(vectors), loss_of(check, rotation, weights)
    momentum = np.zeros_like(rotation)
    squares = np.zeros_like(rotation)
    for step in range(1, steps + 1):
        batch = fitted[random.permutation(len(fitted))[:BATCH_VECTORS]]
        _, by_rotation = loss_and_gradient(batch, rotation, weights)
        by_turn = rotation.T @ by_rotation
        by_turn = by_turn - by_turn.T  # the gradient in the Lie algebra
        momentum += (1 - _MOMENTUM) * (by_turn - momentum)
        squares += (1 - _SQUARES) * (by_turn * by_turn - squares)
        rate = LEARNING_RATE * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        mean = momentum / (1 - _MOMENTUM**step)
        spread = np.sqrt(squares / (1 - _SQUARES**step)) + _EPSILON
        rotation = _turned(rotation, -rate * mean / spread)
        if step % CHECK_STEPS == 0 or step == steps:
            loss = loss_of(check, rotation, weights)
            if loss < least:
                best, least = rotation, loss
        after_step()
    return nearest_orthogonal(best)


def loss_of(vectors: Matrix, rotation: Matrix, weights: Mapping[int, float]) -> float:
    """The weighted sum of all prefixes' losses."""
    losses = prefix_losses(vectors, rotation, tuple(weights))
    return sum(weight * losses[size] for size, weight in weights.items())


def nearest_orthogonal(matrix: Matrix) -> Matrix:
    """The orthogonal factor of the polar decomposition, found in float64, as float32."""
    left, _, right = np.linalg.svd(matrix.astype(np.float64))
    return np.ascontiguousarray(left @ right, dtype=np.float32)


def _turned(rotation: Matrix, half_turn: Matrix) -> Matrix:
    """`rotation` times the Cayley transform of a skew-symmetric matrix, (I - A)⁻¹ (I + A).

    Up to the third order in A that is exp(2A).
    """
    identity = np.eye(len(rotation), dtype=np.float32)
    turn = np.linalg.solve(identity - half_turn, identity + half_turn)
    turned: Matrix = rotation @ turn
    return turned


def _unit(vectors: Matrix) -> tuple[Matrix, Matrix]:
    """The vectors at length 1, and their lengths (texts, 1)."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors / lengths, lengths


def _softmax(unit: Matrix) -> tuple[Matrix, Matrix, NDArray[np.float32]]:
    """Scaled cosines less their largest possible, their softmax, the logarithms of its sums."""
    scaled = unit @ unit.T
    scaled -= 1
    scaled /= np.float32(TEMPERATURE)
    shares = np.exp(scaled)
    np.fill_diagonal(shares, 0)  # a text is no neighbour of itself
    sums = shares.sum(axis=1, keepdims=True)
    shares /= sums
    return scaled, shares, np.log(sums[:, 0])
