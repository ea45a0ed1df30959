"""Tiny models in which every number matters, and how far the witness is from torch for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from server.errors import ImportRefused
from server.importing.witness.tensors import Tensors

Forward = Callable[..., list[NDArray[np.float32]]]

WEIGHTS = "model.safetensors"
WORDS = 120
# Longer than the tests' windows, and shorter; one token; one that comes twice.
TEXTS = [
    np.random.default_rng(length).integers(5, WORDS, length) for length in (1, 6, 23, 41)
]  # fmt: skip
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}


def randomise(model: Any) -> Any:
    """Every parameter another number: also biases, which are zeros, and norms, which are ones."""
    numbers = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        spread = 1.3 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.4
        parameter.data = torch.randn(parameter.shape, generator=numbers) * spread + (
            0.7 if parameter.ndim == 1 else 0
        )
    return model.eval()


def save(model: Any, place: Path) -> Path:
    """The model's folder with `config.json` and its weights."""
    model.set_attn_implementation("eager")
    model.save_pretrained(place)
    return place


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def spelled(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The config with some keys changed, and those that are None taken out."""
    return {k: v for k, v in {**config, **changes}.items() if v is not None}


def witness(
    forward: Forward, folder: Path, config: Mapping[str, Any] | None = None
) -> tuple[list[NDArray[np.float32]], tuple[str, ...]]:
    """The token vectors of TEXTS, and the tensors that were not used."""
    tensors = Tensors(folder, [WEIGHTS])
    return forward(config or read_config(folder), tensors, TEXTS), tensors.unused()


def pooled(hidden: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The vectors of length 1 of all texts and poolings, (texts * 3, hidden size)."""
    found = np.stack([one for text in hidden for one in (text.mean(0), text[0], text[-1])])
    unit: NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def computed_by_torch(model: Any) -> NDArray[np.float32]:
    """As `pooled`, by transformers' own code."""
    with torch.no_grad():
        hidden = [model(torch.tensor(text)[None]).last_hidden_state[0] for text in TEXTS]
    return pooled([text.numpy() for text in hidden])


def without_or_changed(folder: Path, place: Path) -> Iterator[tuple[str, str]]:
    """Write copies of the folder's weights to `place`, each with one tensor gone or changed.

    Yields the tensor's name, and how it was changed.
    """
    stored, numbers = load_file(folder / WEIGHTS), np.random.default_rng(0)
    place.mkdir()
    for name, tensor in stored.items():
        for change in ("removed", "renamed", "changed"):
            others = {k: v for k, v in stored.items() if k != name}
            if change == "renamed":
                others[f"{name}.base_layer"] = tensor
            if change == "changed":
                noise = numbers.standard_normal(tensor.shape, np.float32)
                others[name] = tensor + np.float32(0.02) * noise
            save_file(others, place / WEIGHTS)
            yield name, change


def each_tensor_counts(forward: Forward, folder: Path, place: Path) -> int:
    """Assert that no tensor of the folder can be missing or another one; returns how many are."""
    config = read_config(folder)
    right = pooled(witness(forward, folder, config)[0])
    names = set()
    for name, change in without_or_changed(folder, place):
        names.add(name)
        if change == "changed":
            found = pooled(witness(forward, place, config)[0])
            assert np.abs(found - right).max() > 1e-5, name
        else:
            with pytest.raises(ImportRefused, match=re.escape(name)):
                witness(forward, place, config)
    return len(names)
