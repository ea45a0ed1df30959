"""ModernBERT's forward pass.

Warner et al., Smarter, Better, Faster, Longer (2024): section 2.1 (no biases, pre-normalisation with
a norm behind the embeddings and none before the first attention, GeGLU, rotary positions), 2.1.2
(global attention in every third layer, a local window in the others, with another base of the
rotation). Which half of `Wi` gates, that a window of 128 means 64 tokens to each side, and the order
of queries, keys and values in `Wqkv` are conventions of the published code
(AnswerDotAI/ModernBERT): the first half goes through GELU and is multiplied with the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import UnknownArithmetic
from server.importing.witness import formulas, settings
from server.importing.witness.formulas import Floats
from server.importing.witness.rotary import (
    FULL,
    SLIDING,
    Attention,
    Norm,
    read_layer_types,
    read_rotation,
)
from server.importing.witness.strangers import refuse_strangers
from server.importing.witness.tensors import Tensors

_OLDER_BASES = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}


def forward(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    """The token vectors of each text, (tokens, hidden_size), float32.

    Raises:
        ImportRefused: a tensor is missing, or a setting is not known here.
    """
    refuse_strangers(config)
    settings.require(config, "is_causal", False, None)
    model = _ModernBert(config, tensors)
    width, words = model.width, "embeddings.tok_embeddings.weight"
    rows = settings.count(config, "vocab_size")
    tensors.find_prefix(words)
    norm = model.norm("embeddings.norm")
    hidden = [norm(text) for text in tensors.look_up(words, texts, rows, width)]
    for number, kind in enumerate(model.layer_types):
        hidden = model.attend(f"layers.{number}", kind, hidden, normed=number > 0)
        hidden = model.feed_forward(f"layers.{number}", hidden)
    norm = model.norm("final_norm")
    return [norm(text) for text in hidden]


class _ModernBert:
    """The model's settings, and its layers' steps for all texts."""

    def __init__(self, config: Mapping[str, Any], tensors: Tensors) -> None:
        self._config, self._tensors = config, tensors
        self.width = settings.count(config, "hidden_size")
        self._inner = settings.count(config, "intermediate_size")
        self._epsilon = settings.number(config, "norm_eps")
        self._gate = settings.activation(config, "hidden_activation")
        self._biased = {
            part: settings.flag(config, f"{part}_bias", default=False)
            for part in ("norm", "attention", "mlp")
        }
        self.layer_types = read_layer_types(config, self._older_type)
        self._attention = {kind: self._read_attention(kind) for kind in set(self.layer_types)}

    def _older_type(self, number: int) -> str:
        every = settings.count(self._config, "global_attn_every_n_layers")
        return SLIDING if number % every else FULL

    def _read_attention(self, kind: str) -> Attention:
        config, reach = self._config, None
        if kind == SLIDING:
            reach = settings.count(config, "local_attention") // 2
        heads = settings.count(config, "num_attention_heads")
        if self.width % heads:
            raise UnknownArithmetic(
                f"config.json: {heads} heads do not fit hidden_size {self.width}"
            )
        return Attention(
            heads=heads,
            key_heads=heads,
            head_dim=self.width // heads,
            rotation=read_rotation(config, _OLDER_BASES[kind], layer_type=kind),
            reach=reach,
        )

    def norm(self, name: str) -> Norm:
        scale = self._tensors.take(f"{name}.weight", self.width)
        shift = self._bias(name, "norm", self.width)
        return lambda inputs: formulas.layer_norm(inputs, scale, shift, self._epsilon)

    def attend(self, layer: str, kind: str, hidden: list[Floats], *, normed: bool) -> list[Floats]:
        """The texts and what each of their tokens takes from others."""
        width = self.width
        norm = self.norm(f"{layer}.attn_norm") if normed else lambda inputs: inputs
        fused = self._tensors.take(f"{layer}.attn.Wqkv.weight", 3 * width, width)
        fused_bias = self._bias(f"{layer}.attn.Wqkv", "attention", 3 * width)
        out = self._tensors.take(f"{layer}.attn.Wo.weight", width, width)
        out_bias = self._bias(f"{layer}.attn.Wo", "attention", width)
        found = []
        for text in hidden:
            queries, keys, values = np.split(
                formulas.linear(norm(text), fused, fused_bias), 3, axis=1
            )
            mixed = self._attention[kind](queries, keys, values)
            found.append(text + formulas.linear(mixed, out, out_bias))
        return found

    def feed_forward(self, layer: str, hidden: list[Floats]) -> list[Floats]:
        """The texts and what the gated layer adds to each token."""
        width, inner = self.width, self._inner
        norm = self.norm(f"{layer}.mlp_norm")
        fused = self._tensors.take(f"{layer}.mlp.Wi.weight", 2 * inner, width)
        fused_bias = self._bias(f"{layer}.mlp.Wi", "mlp", 2 * inner)
        out = self._tensors.take(f"{layer}.mlp.Wo.weight", width, inner)
        out_bias = self._bias(f"{layer}.mlp.Wo", "mlp", width)
        found = []
        for text in hidden:
            gate, value = np.split(formulas.linear(norm(text), fused, fused_bias), 2, axis=1)
            found.append(text + formulas.linear(self._gate(gate) * value, out, out_bias))
        return found

    def _bias(self, name: str, part: str, width: int) -> Floats | None:
        return self._tensors.take(f"{name}.bias", width) if self._biased[part] else None
