"""What the files of weights hold against what the folder's other files say they hold.

The shards against their index, the dense layers against their configurations, and each tensor's type.
Reads headers and the numbers of positions, no weight; any thread may call.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from server.errors import ImportRefused
from server.importing.folder import CONFIG_FILE, ModelFolder
from server.importing.head import WEIGHTS_FILE, DenseLayer
from server.importing.json_files import read_json
from server.importing.weight_files import INDEX_FILE, find_transformer_weights
from server.inference.safetensors_header import HeaderEntry, NotSafetensors, read_header
from server.inference.tensor_account import UNUSED_HARMLESS, is_harmless, listed

_WEIGHTS = frozenset({"F64", "F32", "F16", "BF16"})  # types of numbers that weights can have
# What config.json counts that a class makes at once; each layer has tensors of its own.
_COUNTS = re.compile(r"(layers?|labels|groups?|experts|blocks|inner_group_num)$")
_NEVER_TOO_MANY = 1000  # a second's work
_INTEGERS = {"I64": "<i8", "I32": "<i4"}
_POSITIONS = "position_ids"  # a buffer of older checkpoints; classes of today count themselves


def check_files(folder: ModelFolder) -> None:
    """Do nothing if each tensor is where it is said to be.

    Raises:
        ImportRefused: index or configuration and files differ, or a file is none of safetensors.
    """
    try:
        if (folder.transformer_path / INDEX_FILE).is_file():
            _check_index(folder)
        for layer in folder.head.dense:
            _check_dense(folder, layer)
        _check_counts(folder)
        for file in folder.weights:
            _check_numbers(folder.architecture, folder.path / file)
    except NotSafetensors as error:
        raise ImportRefused(str(error)) from None
    except OSError as error:
        raise ImportRefused(f"{error.filename}: {error.strerror}") from None


def _check_counts(folder: ModelFolder) -> None:
    """A class with as many layers as a config says may take hours and all memory to make."""
    tensors = sum(len(read_header(folder.path / file)) for file in folder.transformer_weights)
    for key, said in _numbers(folder.config):
        if _COUNTS.search(key) and said > max(tensors, _NEVER_TOO_MANY):
            raise ImportRefused(
                f"{folder.transformer_path / CONFIG_FILE}: {key} is {said:,}, and the files hold "
                f"{tensors:,} tensors; one of them is another model's, so get the publisher's files anew"
            )


def _numbers(config: Mapping[str, Any], parents: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a config and of those inside it, by their keys."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{parents}{key}.")
        elif isinstance(value, int | float):
            yield f"{parents}{key}", value


def _check_index(folder: ModelFolder) -> None:
    place = folder.transformer_path
    index, shards = place / INDEX_FILE, find_transformer_weights(place)
    if WEIGHTS_FILE not in shards and (place / WEIGHTS_FILE).exists():
        raise ImportRefused(
            f"{place}: has {WEIGHTS_FILE} and the shards of {INDEX_FILE}, and which of them "
            "count is not said; remove one or the other"
        )
    said = {(str(file), name) for name, file in read_json(index)["weight_map"].items()}
    held = {(file, name) for file in shards for name in read_header(place / file)}
    if said - held:
        raise ImportRefused(
            f"{index}: names tensors that their files do not hold: {_places(said - held)}; get the "
            "publisher's files anew"
        )
    if held - said:
        raise ImportRefused(
            f"{index}: does not name tensors that the files hold: {_places(held - said)}; get the "
            "publisher's files anew"
        )


def _places(tensors: Iterable[tuple[str, str]]) -> str:
    return listed([f"{name} ({file})" for file, name in sorted(tensors)])


def _check_dense(folder: ModelFolder, layer: DenseLayer) -> None:
    """sentence-transformers writes `in_features`, `out_features` and `bias` beside the tensors."""
    file = folder.path / layer.weights
    config = read_json(folder.path / layer.folder / "config.json")
    has = {name: entry.shape for name, entry in read_header(file).items()}
    weight = has.get("linear.weight", ())
    in_features = config.get("in_features", weight[-1] if weight else 0)
    wants: dict[str, tuple[int, ...]] = {"linear.weight": (layer.out_features, in_features)}
    if config.get("bias", "linear.bias" in has):
        wants["linear.bias"] = (layer.out_features,)
    if has != wants:
        raise ImportRefused(
            f"{file}: holds {_shapes(has)}, but its config.json says {_shapes(wants)}"
        )


def _shapes(tensors: dict[str, tuple[int, ...]]) -> str:
    return listed([f"{name} {list(shape)}" for name, shape in sorted(tensors.items())]) or "nothing"


def _check_numbers(architecture: str, file: Path) -> None:
    """A loader takes integers for weights, and counts positions itself, without a word."""
    tensors = read_header(file)
    strange = [
        f"{name} ({entry.dtype})"
        for name, entry in tensors.items()
        if entry.dtype not in _WEIGHTS and not _is_unused(name, architecture)
    ]
    if strange:
        raise ImportRefused(
            f"{file}: holds weights that are no floats of 16 bits or more: {listed(strange)}; "
            "quantised weights are not supported: take the folder that they were made of"
        )
    for name, entry in tensors.items():
        if name.rpartition(".")[2] == _POSITIONS and not _counts(file, entry):
            raise ImportRefused(
                f"{file}: {name} does not count 0, 1, 2, ...: the model was trained with other "
                "positions than those that transformers' class would give it"
            )


def _is_unused(name: str, architecture: str) -> bool:
    """Whether no embedding depends on it, with the base model's prefix or without it."""
    bare = name.partition(".")[2]
    return any(is_harmless(one, architecture, UNUSED_HARMLESS) for one in (name, bare))


def _counts(file: Path, entry: HeaderEntry) -> bool:
    if entry.dtype not in _INTEGERS or not all(entry.shape):  # then nobody can count with them
        return True
    with file.open("rb") as opened:
        opened.seek(entry.begin)
        content = opened.read(entry.end - entry.begin)
    if len(content) != np.dtype(_INTEGERS[entry.dtype]).itemsize * math.prod(entry.shape):
        raise NotSafetensors(f"{file}: not a safetensors file: it holds too few positions")
    found = np.frombuffer(content, _INTEGERS[entry.dtype]).reshape(entry.shape)
    return not entry.shape or bool((found == np.arange(entry.shape[-1])).all())
