"""The formulas have the properties that their papers state; no library is asked."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.errors import UnknownArithmetic
from server.importing.witness import formulas

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> formulas.Floats:
    return RANDOM.standard_normal(shape).astype(np.float32)


def test_gelu_is_the_input_times_the_normal_distribution() -> None:
    xs = np.array([-3, -1, 0, 0.5, 2], np.float32)
    expected = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in xs.tolist()]
    np.testing.assert_allclose(formulas.gelu(xs), expected, rtol=1e-6)
    # The approximation is near and not the same.
    difference = np.abs(formulas.gelu_tanh(xs) - formulas.gelu(xs)).max()
    assert 1e-5 < difference < 1e-3


def test_sigmoid_and_silu_are_right_and_do_not_overflow() -> None:
    xs = np.array([-200, -1, 0, 1, 200], np.float32)
    expected = np.array([0, 1 / (1 + math.e), 0.5, 1 / (1 + 1 / math.e), 1])
    np.testing.assert_allclose(formulas.sigmoid(xs), expected, atol=1e-7)
    np.testing.assert_allclose(formulas.silu(xs), xs * expected, atol=1e-6)
    np.testing.assert_array_equal(formulas.relu(xs), [0, 0, 0, 1, 200])


def test_norms_leave_what_they_say() -> None:
    inputs, ones, zeros = floats(5, 64) * 3 + 2, np.ones(64, np.float32), np.zeros(64, np.float32)
    normed = formulas.layer_norm(inputs, ones, zeros, 1e-12)
    np.testing.assert_allclose(normed.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(normed.std(axis=1), 1, atol=1e-6)
    scale, shift = floats(64), floats(64)
    scaled = formulas.layer_norm(inputs, scale, shift, 1e-12)
    np.testing.assert_allclose(scaled, normed * scale + shift, atol=1e-6)
    mean_square = formulas.rms_norm(inputs, ones, 1e-12)
    np.testing.assert_allclose(np.square(mean_square).mean(axis=1), 1, atol=1e-6)
    assert np.abs(mean_square.mean(axis=1)).min() > 0.1  # the mean stays
    # Epsilon is under the root.
    np.testing.assert_allclose(formulas.rms_norm(zeros + 1, ones, 3.0), 0.5)


def test_linear_takes_weights_as_checkpoints_store_them() -> None:
    weight = np.array([[1, 2, 3], [4, 5, 6]], np.float32)  # (out, in)
    np.testing.assert_array_equal(
        formulas.linear(np.array([[1, 0, 1]], np.float32), weight, np.array([10, 20], np.float32)),
        [[14, 30]],
    )


def test_attention_by_hand() -> None:
    queries = np.array([[1, 0], [0, 2]], np.float32)
    keys, values = np.eye(2, dtype=np.float32), np.array([[10, 0], [0, 10]], np.float32)
    weights = [math.exp(1 / math.sqrt(2)), 1]
    share = weights[0] / sum(weights)
    found = formulas.attention(queries, keys, values, heads=1)
    np.testing.assert_allclose(found[0], [10 * share, 10 * (1 - share)], rtol=1e-6)
    # A bias that outweighs everything, and tokens that may not be seen.
    bias = np.array([[0, 99], [99, 0]], np.float32)
    np.testing.assert_allclose(
        formulas.attention(queries, keys, values, heads=1, bias=bias), [[0, 10], [10, 0]], atol=1e-6
    )
    causal = np.tril(np.ones((2, 2), bool))
    found = formulas.attention(queries, keys, values, heads=1, allowed=causal)
    np.testing.assert_array_equal(found[0], values[0])


def test_each_head_has_its_own_numbers_and_key_heads_serve_neighbours() -> None:
    queries, keys, values = floats(6, 8), floats(6, 4), floats(6, 4)
    found = formulas.attention(queries, keys, values, heads=4, key_heads=2)
    for head in range(4):
        own, shared = slice(2 * head, 2 * head + 2), slice(head // 2 * 2, head // 2 * 2 + 2)
        one = formulas.attention(queries[:, own], keys[:, shared], values[:, shared], heads=1)
        np.testing.assert_allclose(found[:, own], one, atol=1e-6)
    with pytest.raises(UnknownArithmetic, match=r"^config\.json: 4 heads do not fit 3 key heads"):
        formulas.attention(queries, keys, values, heads=4, key_heads=3)


def test_rotation_keeps_lengths_and_knows_only_distances() -> None:
    vector = floats(8)
    turned = formulas.rotate(np.tile(vector, (1, 7, 1)), 10_000.0)[0]
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(vector), rtol=1e-6)
    np.testing.assert_array_equal(turned[0], vector)
    products = turned @ turned.T
    for distance in range(7):
        along = np.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], rtol=1e-4)
    assert abs(products[0, 1] - products[0, 2]) > 1e-3
