"""The reference of the packed kernel against plain attention, one sequence at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.inference.torch_attention import packed_attention

HEAD_DIM = 8


def plain(
    query: Any, key: Any, value: Any, *, causal: bool, window: int | None, scale: float
) -> Any:
    """Attention as the papers have it: (heads, tokens, head_dim) each."""
    key, value = (part.repeat_interleave(len(query) // len(part), dim=0) for part in (key, value))
    scores = query @ key.transpose(1, 2) * scale
    for row in range(scores.shape[1]):
        for column in range(scores.shape[2]):
            behind = row - column
            if (causal and behind < 0) or (window is not None and abs(behind) >= window):
                scores[:, row, column] = -torch.inf
    return scores.softmax(dim=-1) @ value


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 2, 5, 40]),
    tail=st.integers(0, 3),
    unused=st.integers(0, 3),
)
def test_each_sequence_attends_to_itself_alone(
    lengths: list[int],
    heads: tuple[int, int],
    causal: bool,
    window: int | None,
    tail: int,
    unused: int,
) -> None:
    torch.manual_seed(sum(lengths))
    total = sum(lengths)
    query, key, value = (torch.randn(1, n, total + tail, HEAD_DIM) for n in (*heads, heads[1]))
    bounds = torch.tensor([0, *lengths, *[0] * unused]).cumsum(0).int()
    found, _ = packed_attention(
        SimpleNamespace(is_causal=causal),
        query,
        key,
        value,
        None,
        cu_seq_lens_q=bounds,
        max_length_q=max(2, *lengths),
        scaling=0.3,
        sliding_window=window,
    )
    assert found.shape == (1, total + tail, heads[0], HEAD_DIM)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        alone = (part[0, :, begin:end] for part in (query, key, value))
        expected = plain(*alone, causal=causal, window=window, scale=0.3)
        torch.testing.assert_close(found[0, begin:end].transpose(0, 1), expected)


def test_more_query_heads_than_key_heads_must_divide() -> None:
    query, key = torch.randn(1, 3, 4, HEAD_DIM), torch.randn(1, 2, 4, HEAD_DIM)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="multiple of kv heads"):
        packed_attention(
            SimpleNamespace(is_causal=False),
            query, key, key, None, cu_seq_lens_q=bounds, max_length_q=4,
        )  # fmt: skip
