"""A model's transformer, pooling, dense layers and normalisation as torch modules.

Built from a card's own files, without code of the model's and without pickles. Two forms compute
the same: `PackedModule` over one row of tokens, `PaddedModule` for the models that cannot be
packed. Knows nothing of queues or threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from server.catalog.card import Card, PoolingMode
from server.errors import ModelLoadError, first_line
from server.inference.torch_attention import (
    PACKED_ATTENTION,
    set_attention,
    takes_attention_functions,
)
from server.inference.torch_last_layer import narrow_last_layer, widen_last_layer
from server.inference.torch_loading import read_transformer
from server.inference.torch_pooling import pool_packed, pool_padded, pooled_tokens
from server.program.command_lines import own_command

STOCK_ATTENTION = "sdpa"


def load_transformer(card: Card, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The card's transformer with its weights, for inference, under eager attention.

    Raises:
        ModelLoadError: the card does not say how, or the weights do not belong to the config.
    """
    if card.torch is None:
        raise ModelLoadError(
            f"model {card.name}: its card has no [torch] table, so it can be computed on the CPU "
            f"only; `{own_command('models', 'import', 'FOLDER', '--name', card.name, '--replace')}` "
            "writes one, from the publisher's FOLDER"
        )
    try:
        found = read_transformer(
            card.path(card.torch.config), map(card.path, card.torch.weights), dtype
        )
    except Exception as error:  # a config can be wrong in any way
        raise ModelLoadError(
            f"model {card.name}: torch cannot load it: {first_line(error)}"
        ) from error
    # A pooler is part of many checkpoints' classes and of no sentence embedding.
    if getattr(found, "pooler", None) is not None:
        found.pooler = None
    for parameter in found.parameters():
        parameter.requires_grad_(False)
    return found.eval().to(device)


class DenseLayers(torch.nn.Sequential):  # type: ignore[misc]
    """What turns pooled vectors into embeddings: dense layers and normalisation, in float32."""

    def __init__(self, layers: Iterable[torch.nn.Module], *, normalize: bool) -> None:
        super().__init__(*layers)
        self.normalize = normalize

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(texts, hidden_dim) to (texts, embedding_dim), both float32."""
        embeddings = super().forward(pooled)
        return torch.nn.functional.normalize(embeddings) if self.normalize else embeddings


def load_dense_layers(card: Card) -> DenseLayers:
    """What follows the pooling.

    Raises:
        ModelLoadError: a dense layer's file is not what the card says.
    """
    layers = card.torch.dense if card.torch else ()
    try:
        dense = [read_dense(card.path(layer.weights), layer.activation) for layer in layers]
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise ModelLoadError(f"model {card.name}: dense layer: {error}") from error
    return DenseLayers(dense, normalize=card.normalize)


def read_dense(path: Path, activation: str) -> torch.nn.Sequential:
    """A dense layer of sentence-transformers, in float32: linear, then its activation.

    Raises:
        OSError, SafetensorError: the file cannot be read.
        KeyError, IndexError: it holds no matrix `linear.weight`, or what is not of such a layer.
    """
    stored = load_file(path)
    strange = sorted(stored.keys() - {"linear.weight", "linear.bias"})
    if strange:
        raise KeyError(f"{path}: {strange[0]} is not of a dense layer")
    weight, bias = stored["linear.weight"].float(), stored.get("linear.bias")
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.float(), requires_grad=False)
    return torch.nn.Sequential(linear, getattr(torch.nn, activation)())


class PackedModule(torch.nn.Module):  # type: ignore[misc]
    """Embeds sequences that lie one behind the other; nothing is padded.

    `forward` waits for no result of the device, so that it can be recorded as a CUDA graph.
    """

    def __init__(
        self, transformer: PreTrainedModel, dense: DenseLayers, pooling: PoolingMode
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.dense = dense
        self.pooling = pooling
        self.padding_id = _padding_that_counts(transformer)
        self._narrow = False

    def narrow(self) -> bool:
        """Have the last layer compute the pooled tokens alone; False if it cannot.

        Until `widen`, no other form can use the transformer.
        """
        self._narrow = self.pooling != "mean" and narrow_last_layer(self.transformer)
        return self._narrow

    def widen(self) -> None:
        """Have the last layer compute all tokens again."""
        widen_last_layer(self.transformer)
        self._narrow = False

    def attend(self) -> None:
        """Have the transformer use packed attention from now on.

        Raises:
            ValueError: its class does not take attention functions.
        """
        set_attention(self.transformer, PACKED_ATTENTION)

    def forward(self, ids: torch.Tensor, bounds: torch.Tensor, longest: int) -> torch.Tensor:
        """Embeddings (slots, embedding_dim), float32.

        Args:
            ids: (tokens,), integers. What lies behind the last sequence is ignored.
            bounds: (slots + 1,), int32: sequence i is `ids[bounds[i]:bounds[i + 1]]`. Slots that
                are not used begin and end where the last sequence ends; their rows mean nothing.
            longest: no sequence has more tokens; at least 2.
        """
        places = torch.arange(ids.shape[0], device=ids.device)
        slots = bounds.shape[0] - 1
        owner = torch.searchsorted(bounds, places, right=True) - 1  # `slots`: of none
        positions = self._positions(ids, bounds[owner].long(), places)
        positions = torch.where(owner < slots, positions, 0)
        hidden = self.transformer(
            input_ids=ids.long()[None],
            attention_mask=None,
            position_ids=positions[None],
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=longest,
            max_length_k=longest,
            use_cache=False,
            **self._for_last_layer(bounds, ids.shape[0]),
        ).last_hidden_state[0]
        if self._narrow:
            return self.dense(hidden.float())
        return self.dense(pool_packed(hidden, bounds, self.pooling))

    def _for_last_layer(self, bounds: torch.Tensor, num_ids: int) -> dict[str, torch.Tensor]:
        if not self._narrow:
            return {}
        return {"pooled_tokens": pooled_tokens(bounds, num_ids, self.pooling)}

    def _positions(
        self, ids: torch.Tensor, begins: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """Each token's position in its sequence, all (tokens,)."""
        if self.padding_id is None:
            return places - begins
        # RoBERTa's descendants begin behind the padding's id, and a padding token in a text, which
        # does not count, has that id as its position.
        counts = ids != self.padding_id
        before = counts.cumsum(0) - counts.long()
        own = before - before[begins.clamp(max=len(ids) - 1)] + 1
        return torch.where(counts, own, 0) + self.padding_id


class PaddedModule(torch.nn.Module):  # type: ignore[misc]
    """Embeds sequences padded to the longest, by the transformer's stock attention."""

    def __init__(
        self, transformer: PreTrainedModel, dense: DenseLayers, pooling: PoolingMode
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.dense = dense
        self.pooling = pooling

    def attend(self) -> None:
        """Have the transformer use stock attention from now on."""
        stock = takes_attention_functions(self.transformer)
        set_attention(self.transformer, STOCK_ATTENTION if stock else "eager")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings (sequences, embedding_dim), float32.

        Both inputs are integers, (sequences, longest); the mask is 1 for a token, 0 for padding.
        """
        hidden = self.transformer(
            input_ids=input_ids, attention_mask=attention_mask, **_without_cache(self.transformer)
        ).last_hidden_state
        return self.dense(pool_padded(hidden, attention_mask, self.pooling))


def _padding_that_counts(transformer: PreTrainedModel) -> int | None:
    """The padding's id if positions depend on it, as with RoBERTa and its descendants."""
    embeddings = getattr(transformer, "embeddings", None)
    if embeddings is None or not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return None
    return int(embeddings.padding_idx)


def _without_cache(transformer: PreTrainedModel) -> dict[str, bool]:
    return {"use_cache": False} if hasattr(transformer.config, "use_cache") else {}


def lay_out(sequences: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Sequences of ids as `PackedModule.forward` takes them: ids, bounds and longest."""
    lengths = torch.tensor([0, *map(len, sequences)])
    return torch.cat(list(sequences)), lengths.cumsum(0).int(), max(2, int(lengths.max()))
