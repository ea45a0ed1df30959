"""The last layer computed only for the tokens that are pooled, in a packed pass.

With `cls` and `last_token` pooling one token a text of the last layer's output is kept. Keys and
values are wanted of all tokens, the output product and the feed-forward only of that one. (So are
the queries, but attention expects as many as there are keys.) What stands around attention is written
out here as transformers has it, for layers of the classes that are named; others stay as they are.
`onnx_last_layer` does the like in exported graphs. Waits for no result of the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

# x = norm(x + product(attention(x))); x = norm(x + feed_forward(x))
_NORMS_BEHIND = {"BertLayer", "CamembertLayer", "RobertaLayer", "XLMRobertaLayer"}


class _Names(NamedTuple):
    """Members of a layer."""

    norm: str
    attention: str
    product: str  # of the attention
    second_norm: str
    feed_forward: str


# x = x + product(attention(norm(x))); x = x + feed_forward(norm(x))
_DECODER = _Names("input_layernorm", "self_attn", "o_proj", "post_attention_layernorm", "mlp")
_NORMS_BEFORE = {
    "LlamaDecoderLayer": _DECODER,
    "MistralDecoderLayer": _DECODER,
    "Qwen2DecoderLayer": _DECODER,
    "Qwen3DecoderLayer": _DECODER,
    "ModernBertEncoderLayer": _Names("attn_norm", "attn", "Wo", "mlp_norm", "mlp"),
}


def layers_of(transformer: PreTrainedModel) -> torch.nn.ModuleList:
    """Its longest list of modules."""
    lists = [m for m in transformer.modules() if isinstance(m, torch.nn.ModuleList)]
    return max(lists, key=len, default=torch.nn.ModuleList())


def narrow_last_layer(transformer: PreTrainedModel) -> bool:
    """Have the last layer take `pooled_tokens` and give these tokens alone; False if it cannot.

    A layer of another version of transformers, which names a member otherwise, stays as it is.
    """
    layers = layers_of(transformer)
    kind = type(layers[-1]).__name__ if len(layers) else ""
    try:
        if kind in _NORMS_BEHIND:
            layers[-1] = _NormsBehind(layers[-1])
        elif kind in _NORMS_BEFORE:
            layers[-1] = _NormsBefore(layers[-1], _NORMS_BEFORE[kind])
        else:
            return False
    except AttributeError:
        return False
    return True


def widen_last_layer(transformer: PreTrainedModel) -> None:
    """Have the last layer compute all tokens again."""
    layers = layers_of(transformer)
    if len(layers) and isinstance(layers[-1], _PooledLayer):
        layers[-1] = layers[-1].restored()


class _PooledLayer(torch.nn.Module):  # type: ignore[misc]
    """Called as the layer, and told which tokens are pooled.

    It takes `hidden` (1, tokens, hidden_dim), integers `pooled_tokens` (texts,) and what the model
    tells each layer; it gives (1, texts, hidden_dim).
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def restored(self) -> torch.nn.Module:
        """The layer as it was."""
        return self.layer


class _NormsBehind(_PooledLayer):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__(layer)
        self.attention, self.product = layer.attention.self, layer.attention.output
        self.up, self.down = layer.intermediate, layer.output

    def forward(
        self, hidden: torch.Tensor, *_: object, pooled_tokens: torch.Tensor, **told: Any
    ) -> torch.Tensor:
        attended, _weights = self.attention(hidden, **told)
        kept = self.product(attended[:, pooled_tokens], hidden[:, pooled_tokens])
        found: torch.Tensor = self.down(self.up(kept), kept)
        return found


class _NormsBefore(_PooledLayer):
    def __init__(self, layer: torch.nn.Module, names: _Names) -> None:
        super().__init__(layer)
        self.names = names
        self.attention = getattr(layer, names.attention)
        self.product = getattr(self.attention, names.product)
        self.norm, self.second_norm = getattr(layer, names.norm), getattr(layer, names.second_norm)
        self.feed_forward = getattr(layer, names.feed_forward)
        self.attention_type = getattr(layer, "attention_type", None)  # some models look at it
        setattr(self.attention, names.product, torch.nn.Identity())  # last: all members are there

    def forward(
        self, hidden: torch.Tensor, *_: object, pooled_tokens: torch.Tensor, **told: Any
    ) -> torch.Tensor:
        attended, _weights = self.attention(self.norm(hidden), **told)
        kept = hidden[:, pooled_tokens] + self.product(attended[:, pooled_tokens])
        found: torch.Tensor = kept + self.feed_forward(self.second_norm(kept))
        return found

    def restored(self) -> torch.nn.Module:
        setattr(self.attention, self.names.product, self.product)
        return self.layer
