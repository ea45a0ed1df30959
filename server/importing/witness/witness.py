"""The witness: a model computed once more, in plain numpy, straight from config.json and tensors.

A graph and sentence-transformers come from one loader, so that each default agrees with itself and
each tensor that a loader makes up is made up twice. This shares nothing with them but the token ids
that it is given: not the loader, not the formulas, not the reader of weights. It is slow and needs
the memory of one layer. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Activation, Card, PoolingMode
from server.errors import ImportRefused
from server.importing.folder import ModelFolder
from server.importing.json_files import read_json
from server.importing.witness import (
    bert,
    distilbert,
    gemma3,
    modernbert,
    mpnet,
    nomic_bert,
    qwen,
    roberta,
    t5,
)
from server.importing.witness.tensors import Tensors
from server.importing.witness.vectors import dense, pool, unit
from server.inference.tensor_account import UNUSED_HARMLESS, is_harmless, listed

Forward = Callable[
    [Mapping[str, Any], Tensors, Sequence[NDArray[np.int64]]], list[NDArray[np.float32]]
]

# By config.json's model_type.
FAMILIES: dict[str, Forward] = {
    "bert": bert.forward,
    "camembert": roberta.forward,
    "distilbert": distilbert.forward,
    "gemma3_text": gemma3.forward,
    "modernbert": modernbert.forward,
    "mpnet": mpnet.forward,
    "nomic_bert": nomic_bert.forward,
    "qwen2": qwen.forward_qwen2,
    "qwen3": qwen.forward_qwen3,
    "roberta": roberta.forward,
    "t5": t5.forward,
    "xlm-roberta": roberta.forward,
}


class Dense(Protocol):
    """A dense layer, as a folder or a card tells it."""

    @property
    def weights(self) -> str:
        """Its safetensors file."""

    @property
    def activation(self) -> Activation:
        """By torch's name."""


@dataclass(frozen=True, slots=True)
class Witness:
    """How to compute a model once more; `folder` is where its files lie."""

    architecture: str
    folder: Path
    config: Mapping[str, Any]
    weights: tuple[str, ...]  # of the transformer
    dense: tuple[Dense, ...]
    pooling: PoolingMode
    normalize: bool

    @property
    def name(self) -> str:
        """How lines and cards call it."""
        return f"witness ({self.architecture} in numpy)"

    @classmethod
    def of_folder(cls, folder: ModelFolder) -> Witness | None:
        """The witness of a publisher's folder; None: its family has none, or there are no weights.

        Args:
            folder: a stock one: of code of its own nothing is known here.
        """
        if folder.architecture not in FAMILIES or not folder.weights:
            return None
        return cls(
            architecture=folder.architecture,
            folder=folder.path,
            config=folder.config,
            weights=folder.transformer_weights,
            dense=folder.head.dense,
            pooling=folder.head.pooling,
            normalize=folder.head.normalize,
        )

    @classmethod
    def of_card(cls, card: Card) -> Witness | None:
        """The witness of an installed model that has no base; None: `lack_of` says why.

        Raises:
            ImportRefused: the model's config.json cannot be read.
        """
        if card.architecture not in FAMILIES or card.torch is None:
            return None
        return cls(
            architecture=card.architecture,
            folder=card.folder,
            config=read_json(card.path(card.torch.config)),
            weights=card.torch.weights,
            dense=card.torch.dense,
            pooling=card.pooling,
            normalize=card.normalize,
        )

    def embed(self, sequences: Sequence[NDArray[np.integer]]) -> NDArray[np.float32]:
        """Vectors (texts, embedding_dim), float32, of each text's token ids (tokens,).

        Raises:
            UnknownArithmetic: config.json says what the family's formulas do not know.
            ImportRefused: a tensor is missing, has another shape or is not finite, or the files hold
                one that the family has no use for.
        """
        texts = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        tensors = Tensors(self.folder, self.weights)
        hidden = FAMILIES[self.architecture](self.config, tensors, texts)
        self._check_unused(tensors)
        vectors = np.stack([pool(text, self.pooling) for text in hidden])
        for layer in self.dense:
            vectors = dense(vectors, Tensors(self.folder, [layer.weights]), layer.activation)
        return unit(vectors) if self.normalize else vectors

    def _check_unused(self, tensors: Tensors) -> None:
        prefix = tensors.prefix.rstrip(".")
        strange = [
            name
            for name in tensors.unused()
            if not is_harmless(name, self.architecture, UNUSED_HARMLESS, prefix)
        ]
        if strange:
            raise ImportRefused(
                f"{self.folder}: the files hold tensors that the {self.name} has no use for: "
                f"{listed(strange)}"
            )


def lack_of(architecture: str) -> str:
    """Why a folder or card has no witness, for a line."""
    if architecture not in FAMILIES:
        return f"no witness for {architecture}"
    return "no witness: its card has no [torch] table, which names config.json and weights"
