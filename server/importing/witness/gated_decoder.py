"""The layers that Qwen2, Qwen3 and Gemma 3 share, under the names that all three publish.

Touvron et al., LLaMA (2023), section 2.2: RMS norms before attention and feed-forward, rotary
positions, a gated feed-forward layer (Shazeer, GLU Variants (2020)). What the families have beyond
it (biases, norms over heads and behind the sub-layers, windows) stands in `Plan`. Pure functions
of a config and files; any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.importing.witness import formulas, settings
from server.importing.witness.formulas import Floats
from server.importing.witness.rotary import Attention, Norm
from server.importing.witness.settings import Activation
from server.importing.witness.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Plan:
    """What one family's layers compute, and under which names."""

    width: int
    inner: int
    epsilon: float
    gate: Activation
    attention: Mapping[str, Attention]  # by layer type
    layer_types: Sequence[str]
    biased: frozenset[str]  # of the projections q, k, v and o, those with a bias
    norms_heads: bool  # queries and keys are normalised, each head by itself
    scale_offset: float  # a stored scale of 0.2 means 0.2 or 1.2
    attention_norms: tuple[str, str | None]  # before and behind
    feed_forward_norms: tuple[str, str | None]


def read_sizes(config: Mapping[str, Any], head_dim: int | None) -> dict[str, int]:
    """The heads of a config, as `Attention` names them.

    Args:
        head_dim: None: what the heads get of the hidden size.

    Raises:
        ImportRefused: a size is missing.
    """
    heads = settings.count(config, "num_attention_heads")
    return {
        "heads": heads,
        "key_heads": settings.count(config, "num_key_value_heads"),
        "head_dim": head_dim or settings.count(config, "hidden_size") // heads,
    }


def run(plan: Plan, tensors: Tensors, hidden: Sequence[Floats]) -> list[Floats]:
    """All layers and the last norm, for all texts; (tokens, width) each.

    Raises:
        ImportRefused: a tensor is missing or has another shape.
    """
    found = list(hidden)
    for number, kind in enumerate(plan.layer_types):
        layer = f"layers.{number}"
        for norms, step in (
            (plan.attention_norms, _attend(plan, plan.attention[kind], tensors, layer)),
            (plan.feed_forward_norms, _feed_forward(plan, tensors, layer)),
        ):
            before = _norm(plan, tensors, f"{layer}.{norms[0]}", plan.width)
            behind = (
                _same
                if norms[1] is None
                else _norm(plan, tensors, f"{layer}.{norms[1]}", plan.width)
            )
            found = [text + behind(step(before(text))) for text in found]
    norm = _norm(plan, tensors, "norm", plan.width)
    return [norm(text) for text in found]


def _same(inputs: Floats) -> Floats:
    return inputs


def _norm(plan: Plan, tensors: Tensors, name: str, width: int) -> Norm:
    scale = tensors.take(f"{name}.weight", width) + plan.scale_offset
    return lambda inputs: formulas.rms_norm(inputs, scale, plan.epsilon)


def _attend(
    plan: Plan, attention: Attention, tensors: Tensors, layer: str
) -> Callable[[Floats], Floats]:
    names = f"{layer}.self_attn"
    head_dim = attention.head_dim
    width, key_width = attention.heads * head_dim, attention.key_heads * head_dim

    def project(letter: str, outputs: int, inputs: int) -> Callable[[Floats], Floats]:
        weight = tensors.take(f"{names}.{letter}_proj.weight", outputs, inputs)
        biased = letter in plan.biased
        bias = tensors.take(f"{names}.{letter}_proj.bias", outputs) if biased else None
        return lambda text: formulas.linear(text, weight, bias)

    query, out = project("q", width, plan.width), project("o", plan.width, width)
    key, value = (project(letter, key_width, plan.width) for letter in "kv")
    norms: list[Norm | None] = [None, None]
    if plan.norms_heads:
        norms = [_norm(plan, tensors, f"{names}.{letter}_norm", head_dim) for letter in "qk"]
    return lambda text: out(attention(query(text), key(text), value(text), *norms))


def _feed_forward(plan: Plan, tensors: Tensors, layer: str) -> Callable[[Floats], Floats]:
    gate = tensors.take(f"{layer}.mlp.gate_proj.weight", plan.inner, plan.width)
    up = tensors.take(f"{layer}.mlp.up_proj.weight", plan.inner, plan.width)
    down = tensors.take(f"{layer}.mlp.down_proj.weight", plan.width, plan.inner)

    def step(text: Floats) -> Floats:
        gated = plan.gate(formulas.linear(text, gate)) * formulas.linear(text, up)
        return formulas.linear(gated, down)

    return step
