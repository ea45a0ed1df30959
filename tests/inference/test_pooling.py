"""What is pooled and normalised here has the same bits, whatever stands beside it."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.card import PoolingMode
from server.inference.pooling import normalize, pool

TEXTS = 17


@pytest.fixture(scope="module")
def hidden() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(TEXTS, 24, 100)).astype(np.float32)


@pytest.mark.parametrize("mode", get_args(PoolingMode))
def test_a_text_has_the_same_bits_alone_and_in_company(
    hidden: NDArray[np.float32], mode: PoolingMode
) -> None:
    lengths = np.random.default_rng(1).integers(1, hidden.shape[1] + 1, TEXTS)
    mask = (np.arange(hidden.shape[1]) < lengths[:, None]).astype(np.int64)
    alone = [pool(hidden[i : i + 1], mask[i : i + 1], mode) for i in range(TEXTS)]
    assert pool(hidden, mask, mode).tobytes() == np.concatenate(alone).tobytes()


def test_the_mean_is_of_the_tokens_and_not_of_the_padding(hidden: NDArray[np.float32]) -> None:
    mask = np.zeros((TEXTS, hidden.shape[1]), np.int64)
    mask[:, :5] = 1
    expected = hidden[:, :5].astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(pool(hidden, mask, "mean"), expected, atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_vector_at_length_1_has_the_same_bits_in_any_layout(
    hidden: NDArray[np.float32], order: str
) -> None:
    vectors = np.array(hidden[:, 0], order=order)  # type: ignore[call-overload]
    alone = [normalize(vector[None]) for vector in np.ascontiguousarray(vectors)]
    found = normalize(vectors)
    assert found.tobytes() == np.concatenate(alone).tobytes()
    assert found.flags.c_contiguous
