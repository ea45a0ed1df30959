"""The safetensors files of a folder, by their names in it; no weight is read.

Pure functions of files; any thread may call.
"""

from __future__ import annotations

from pathlib import Path

from server.catalog.names import stays_below
from server.errors import ImportRefused
from server.importing.head import WEIGHTS_FILE, Head
from server.importing.json_files import read_json

INDEX_FILE = "model.safetensors.index.json"
REFERENCE_FILE = "reference.safetensors"  # an import writes it
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


def find_weights(path: Path, transformer: str, head: Head, *, has_graph: bool) -> tuple[str, ...]:
    """The safetensors files, from the folder, those of the dense layers last; none if there are none.

    Args:
        transformer: the transformer's folder below `path`.
        has_graph: there is a publisher's graph to do without weights that are pickled.

    Raises:
        ImportRefused: a file is not there, lies elsewhere, or can only be unpickled.
    """
    files = [
        Path(transformer, name).as_posix() for name in find_transformer_weights(path / transformer)
    ]
    pickles = [name for name in PICKLES if (path / transformer / name).exists()]
    if not files and pickles and not has_graph:
        raise ImportRefused(
            f"{path / transformer}: weights only as {pickles[0]}, which can run code when it is "
            "read; convert them to safetensors where that code may run"
        )
    if files:
        files += [layer.weights for layer in head.dense]
    for name in files:
        if name == REFERENCE_FILE:
            raise ImportRefused(f"{path / INDEX_FILE}: {name} cannot be a file of weights")
        if not (path / name).is_file():
            raise ImportRefused(f"{path / name}: No such file")
    return tuple(files)


def find_transformer_weights(place: Path) -> list[str]:
    """The names of a transformer's safetensors files, one or shards with their index.

    Raises:
        ImportRefused: the index names something else.
    """
    index = place / INDEX_FILE
    if not index.is_file():
        return [WEIGHTS_FILE] if (place / WEIGHTS_FILE).is_file() else []
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ImportRefused(f"{index}: has no weight_map")
    files = sorted({str(name) for name in shards.values()})
    for name in files:
        if not stays_below(name):
            raise ImportRefused(f"{index}: {name} lies outside the folder")
        if not name.endswith(".safetensors"):
            raise ImportRefused(f"{index}: {name} cannot be a file of weights")
    return files
