"""The formulas that transformers are made of, in plain numpy, for one text at a time.

Written from the papers that each one names. All take and give float32; nothing is padded. Pure
functions; any thread may call.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from server.errors import UnknownArithmetic

Floats = NDArray[np.float32]

_erf = np.frompyfunc(math.erf, 1, 1)  # numpy has none


def linear(inputs: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """(..., in) to (..., out): x W^T + b; `weight` is (out, in) as checkpoints store it."""
    product: Floats = inputs @ weight.T
    return product if bias is None else product + bias


def layer_norm(inputs: Floats, scale: Floats, shift: Floats | None, epsilon: float) -> Floats:
    """Over the last axis. Ba, Kiros and Hinton, Layer Normalization (2016), equation 4."""
    centred = inputs - inputs.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    found: Floats = centred / np.sqrt(variance + np.float32(epsilon)) * scale
    return found if shift is None else found + shift


def rms_norm(inputs: Floats, scale: Floats, epsilon: float) -> Floats:
    """Over the last axis, without a mean. Zhang and Sennrich, RMSNorm (2019), equation 4."""
    mean_square = np.square(inputs).mean(axis=-1, keepdims=True)
    found: Floats = inputs / np.sqrt(mean_square + np.float32(epsilon)) * scale
    return found


def gelu(inputs: Floats) -> Floats:
    """The input times the normal distribution's function. Hendrycks and Gimpel, GELUs (2016)."""
    erf = np.asarray(_erf(inputs.astype(np.float64) / math.sqrt(2)), dtype=np.float64)
    found: Floats = (inputs * 0.5 * (1 + erf)).astype(np.float32)
    return found


def gelu_tanh(inputs: Floats) -> Floats:
    """Its approximation by tanh, from the same paper, section 2."""
    cubic = inputs + np.float32(0.044715) * inputs**3
    found: Floats = (
        np.float32(0.5) * inputs * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * cubic))
    )
    return found


def relu(inputs: Floats) -> Floats:
    """The positive part. Nair and Hinton (2010)."""
    return np.maximum(inputs, np.float32(0))


def sigmoid(inputs: Floats) -> Floats:
    """1 / (1 + e^-x), by tanh, which does not overflow."""
    found: Floats = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * inputs))
    return found


def silu(inputs: Floats) -> Floats:
    """The input times its sigmoid. Hendrycks and Gimpel, GELUs (2016), section 4."""
    return inputs * sigmoid(inputs)


def tanh(inputs: Floats) -> Floats:
    """The hyperbolic tangent."""
    found: Floats = np.tanh(inputs)
    return found


def softmax(scores: Floats) -> Floats:
    """Over the last axis; the largest score is taken off first, which changes nothing."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return found


def attention(
    queries: Floats,
    keys: Floats,
    values: Floats,
    *,
    heads: int,
    key_heads: int | None = None,
    scale: float | None = None,
    bias: Floats | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> Floats:
    """Scaled dot-product attention of one text.

    Vaswani et al., Attention Is All You Need (2017), section 3.2; with fewer key heads Ainslie et
    al., GQA (2023): each key head serves heads / key_heads neighbouring query heads.

    Args:
        queries: (tokens, heads * head_dim); keys, values: (tokens, key_heads * head_dim).
        key_heads: None: as many as `heads`.
        scale: of the products; None: one over the root of head_dim.
        bias: added to the scaled products, (heads, tokens, tokens) or (tokens, tokens).
        allowed: (tokens, tokens): whether a token (row) looks at another one (column); None: at
            every one.

    Returns:
        (tokens, heads * head_dim).

    Raises:
        UnknownArithmetic: heads, key heads and numbers do not fit each other.
    """
    key_heads = key_heads or heads
    if heads % key_heads or queries.shape[1] % heads:
        raise UnknownArithmetic(
            f"config.json: {heads} heads do not fit {key_heads} key heads and {queries.shape[1]} numbers"
        )
    tokens, head_dim = len(queries), queries.shape[1] // heads
    query = split_heads(queries, heads)  # (heads, tokens, head_dim)
    key = split_heads(keys, key_heads).repeat(heads // key_heads, axis=0)
    value = split_heads(values, key_heads).repeat(heads // key_heads, axis=0)
    factor = np.float32(1 / math.sqrt(head_dim) if scale is None else scale)
    scores = query @ key.transpose(0, 2, 1) * factor  # (heads, tokens, tokens)
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = np.where(allowed, scores, np.float32(-np.inf))
    found: Floats = softmax(scores) @ value
    return found.transpose(1, 0, 2).reshape(tokens, heads * head_dim)


def split_heads(inputs: Floats, heads: int) -> Floats:
    """(tokens, heads * head_dim) to (heads, tokens, head_dim)."""
    return inputs.reshape(len(inputs), heads, -1).transpose(1, 0, 2)


def join_heads(inputs: Floats) -> Floats:
    """(heads, tokens, head_dim) to (tokens, heads * head_dim)."""
    return inputs.transpose(1, 0, 2).reshape(inputs.shape[1], -1)


def rotate(inputs: Floats, base: float, factor: float = 1.0) -> Floats:
    """Rotary positions 0, 1, 2 … of one text, halves against each other.

    Su et al., RoFormer (2021), section 3.2.2: pair i of a head turns by position / base^(2i/d). The
    checkpoints at hand pair number i with number i + d/2, not with its neighbour.

    Args:
        inputs: (heads, tokens, head_dim) of queries or keys; head_dim is even.
        factor: positions are divided by it. Chen et al., Position Interpolation (2023).
    """
    tokens, head_dim = inputs.shape[1:]
    half = head_dim // 2
    pace = base ** (-np.arange(half, dtype=np.float64) * 2 / head_dim)
    angles = np.arange(tokens, dtype=np.float64)[:, None] / factor * pace  # (tokens, half)
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    left, right = inputs[..., :half], inputs[..., half:]
    return np.concatenate((left * cosine - right * sine, right * cosine + left * sine), axis=-1)
