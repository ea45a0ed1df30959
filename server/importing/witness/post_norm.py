"""The encoder layer that BERT and its descendants share: each step's sum is normalised after it.

Vaswani et al., Attention Is All You Need (2017), figure 1 and sections 3.1 to 3.3; Devlin et al.,
BERT (2018), takes it with GELU. Pure functions of tensors; not thread-safe, as `Tensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.importing.witness.formulas import Floats, attention, layer_norm, linear
from server.importing.witness.settings import Activation
from server.importing.witness.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Names:
    """How a family calls a layer's parts, behind the layer's own prefix."""

    query: str
    key: str
    value: str
    output: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a config says of each layer."""

    hidden: int
    inner: int  # of the feed-forward step
    heads: int
    epsilon: float
    activation: Activation


def normalise(tensors: Tensors, name: str, hidden: Sequence[Floats], sizes: Sizes) -> list[Floats]:
    """LayerNorm with the scale and shift of that name, of each text.

    Checkpoints that come from TensorFlow, BERT's own among them, call them gamma and beta.
    """
    older = tensors.has(f"{name}.gamma") or tensors.has(f"{name}.beta")
    scale, shift = (
        tensors.take(f"{name}.{part}", sizes.hidden)
        for part in (("gamma", "beta") if older else ("weight", "bias"))
    )
    return [layer_norm(text, scale, shift, sizes.epsilon) for text in hidden]


def layer(
    tensors: Tensors,
    prefix: str,
    names: Names,
    sizes: Sizes,
    hidden: Sequence[Floats],
    biases: Sequence[Floats] | None = None,
) -> list[Floats]:
    """One layer over each text's tokens, (tokens, hidden).

    Args:
        biases: added to each text's attention scores, (heads, tokens, tokens).
    """

    def project(name: str, inputs: Sequence[Floats], size: int, target: int) -> list[Floats]:
        weight = tensors.take(f"{prefix}{name}.weight", target, size)
        bias = tensors.take(f"{prefix}{name}.bias", target)
        return [linear(text, weight, bias) for text in inputs]

    size = sizes.hidden
    query, key, value = (
        project(name, hidden, size, size) for name in (names.query, names.key, names.value)
    )
    mixed = [
        attention(q, k, v, heads=sizes.heads, bias=biases[number] if biases else None)
        for number, (q, k, v) in enumerate(zip(query, key, value, strict=True))
    ]
    attended = project(names.output, mixed, size, size)
    sums = [old + new for old, new in zip(hidden, attended, strict=True)]
    hidden = normalise(tensors, prefix + names.attention_norm, sums, sizes)
    inner = [sizes.activation(text) for text in project(names.up, hidden, size, sizes.inner)]
    fed = project(names.down, inner, sizes.inner, size)
    sums = [old + new for old, new in zip(hidden, fed, strict=True)]
    return normalise(tensors, prefix + names.output_norm, sums, sizes)
