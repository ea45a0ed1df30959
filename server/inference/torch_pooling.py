"""Token vectors to one vector a text, in torch: for the graphs that are exported and for GPUs.

The formulas of sentence-transformers' Pooling module; `pooling` has them in numpy, for graphs that
others made. What is pooled comes out in float32: sums of half-precision numbers would lose the last
digits. Pure functions that wait for no result of the device.
"""

from __future__ import annotations

import torch

from server.catalog.card import PoolingMode


def pool_padded(hidden: torch.Tensor, mask: torch.Tensor, mode: PoolingMode) -> torch.Tensor:
    """Of texts that are padded to the longest, on either side.

    Args:
        hidden: (texts, tokens, hidden_dim), floating.
        mask: (texts, tokens), integers: 1 for a token, 0 for padding.

    Returns:
        (texts, hidden_dim), float32.
    """
    if mode == "cls":
        return hidden[:, 0].float()
    if mode == "last_token":
        # The last position that is no padding.
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)  # (texts,)
        chosen = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))
        return chosen.squeeze(1).float()
    # A product and not a sum: ONNX Runtime's ReduceSum adds up the tokens of a text that is alone in
    # another order (1.32), its MatMul computes each text for itself.
    weights = mask.unsqueeze(1).float()  # (texts, 1, tokens)
    return (weights @ hidden.float()).squeeze(1) / weights.sum(dim=2).clamp(min=1e-9)


def pool_packed(hidden: torch.Tensor, bounds: torch.Tensor, mode: PoolingMode) -> torch.Tensor:
    """Of sequences that lie one behind the other, without padding.

    Args:
        hidden: (tokens, hidden_dim), floating.
        bounds: (slots + 1,), integers: sequence i is `hidden[bounds[i]:bounds[i + 1]]`. The rows of
            slots that are empty mean nothing.

    Returns:
        (slots, hidden_dim), float32.
    """
    tokens = pooled_tokens(bounds, hidden.shape[0], mode)
    if tokens is not None:
        return hidden[tokens].float()
    lengths = bounds.diff().long()
    sums = torch.segment_reduce(hidden.float(), "sum", lengths=lengths, axis=0, unsafe=True)
    return sums / lengths.clamp(min=1)[:, None]


def pooled_tokens(bounds: torch.Tensor, tokens: int, mode: PoolingMode) -> torch.Tensor | None:
    """Which of so many tokens is its sequence's vector, (slots,), integers; None for a mean.

    Slots that are empty have some token or other.

    Args:
        bounds: as of `pool_packed`.
    """
    if mode == "cls":
        return bounds[:-1].clamp(max=tokens - 1)
    if mode == "last_token":
        return (bounds[1:] - 1).clamp(min=0)
    return None
