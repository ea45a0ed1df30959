"""What the files of weights hold against what the folder's other files say they hold.

The shards against their index, and the dense layers against their configurations. Reads headers and
no weight; any thread may call.
"""

from __future__ import annotations

from collections.abc import Iterable

from server.errors import ImportRefused
from server.importing.folder import ModelFolder
from server.importing.head import WEIGHTS_FILE, DenseLayer
from server.importing.json_files import read_json
from server.importing.weight_files import INDEX_FILE, find_transformer_weights
from server.inference.safetensors_header import NotSafetensors, read_header
from server.inference.tensor_account import listed


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
    except NotSafetensors as error:
        raise ImportRefused(str(error)) from None
    except OSError as error:
        raise ImportRefused(f"{error.filename}: {error.strerror}") from None


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
