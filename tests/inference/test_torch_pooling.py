"""The poolings of torch are those of numpy, whatever stands beside a text."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from server.catalog.card import PoolingMode
from server.inference.pooling import pool
from server.inference.torch_pooling import pool_packed, pool_padded

LENGTHS = (3, 1, 7)
MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)


def padded(*, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(len(LENGTHS), max(LENGTHS), 5)
    mask = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        mask[row, slice(-length, None) if left else slice(length)] = 1
    return hidden, mask


@pytest.mark.parametrize("mode", MODES)
def test_padded_texts_are_pooled_as_by_numpy(mode: PoolingMode) -> None:
    hidden, mask = padded()
    expected = pool(hidden.numpy(), mask.numpy(), mode)
    np.testing.assert_allclose(pool_padded(hidden, mask, mode).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_packed_sequences_are_pooled_as_padded_ones(mode: PoolingMode) -> None:
    hidden, mask = padded()
    bounds = torch.tensor([0, *np.cumsum(LENGTHS)], dtype=torch.int32)
    packed = pool_packed(hidden[mask.bool()], bounds, mode)
    torch.testing.assert_close(packed, pool_padded(hidden, mask, mode), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["mean", "last_token"])
def test_padding_on_the_left_changes_nothing(mode: PoolingMode) -> None:
    hidden, mask = padded()
    _, turned_mask = padded(left=True)
    turned = torch.zeros_like(hidden)
    turned[turned_mask.bool()] = hidden[mask.bool()]
    torch.testing.assert_close(
        pool_padded(turned, turned_mask, mode), pool_padded(hidden, mask, mode)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_pooled_in_float32(mode: PoolingMode, dtype: torch.dtype) -> None:
    """The sum of 2,049 ones is no number of half precision: it would be 2,048."""
    hidden = torch.ones(1, 2049, 1, dtype=dtype)
    mask = torch.ones(1, hidden.shape[1], dtype=torch.int64)
    bounds = torch.tensor([0, hidden.shape[1]], dtype=torch.int32)
    for found in (pool_padded(hidden, mask, mode), pool_packed(hidden[0], bounds, mode)):
        assert found.dtype == torch.float32
        assert found.item() == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_slots_without_a_sequence_leave_the_others_as_they_are(mode: PoolingMode) -> None:
    hidden = torch.arange(12.0).reshape(6, 2)
    used = torch.tensor([0, 2, 6], dtype=torch.int32)
    more = torch.tensor([0, 2, 6, 6, 6], dtype=torch.int32)
    found = pool_packed(hidden, more, mode)
    assert found.shape == (4, 2)
    torch.testing.assert_close(found[:2], pool_packed(hidden, used, mode))
