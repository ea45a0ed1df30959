"""Graphs that this run of the tests has exported, so that equal folders are exported once.

torch needs seconds to export even a tiny model, and many tests import the same one. The first
import of a folder is the real one; later ones of the same weights, config and head take its graph.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from server.importing import torch_export
from server.importing.folder import CONFIG_FILE, ModelFolder
from server.importing.onnx_graph import StoredShare
from tests.importing.folders import export_published


class Exports:
    """Results of slow functions by what they depend on, in a folder that several processes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def export_graph(self, folder: ModelFolder) -> tuple[bytes, StoredShare]:
        """As `torch_export.export_graph`."""
        dense = [layer.weights for layer in folder.head.dense]
        names = (*folder.weights, *dense)
        files = [folder.transformer_path / CONFIG_FILE, *(folder.path / name for name in names)]
        key = _digest(files, repr((folder.weights, folder.head)))

        def make(place: Path) -> None:
            place.write_bytes(pickle.dumps(_REAL_EXPORT(folder)))

        made: tuple[bytes, StoredShare] = pickle.loads(self._once(key, make).read_bytes())
        return made

    def published(self, folder: Path) -> Path:
        """As `export_published`."""
        key = _digest([folder / CONFIG_FILE, folder / "model.safetensors"], "published")
        made = self._once(
            key, lambda place: shutil.copytree(export_published(folder).parent, place)
        )
        shutil.copytree(made, folder / "onnx", dirs_exist_ok=True)
        return folder / "onnx" / "model.onnx"

    def _once(self, key: str, make: Callable[[Path], object]) -> Path:
        place = self.folder / key
        with FileLock(self.folder / f"{key}.lock"):
            if not place.exists():
                scratch = self.folder / f"{key}.new"
                make(scratch)
                scratch.rename(place)
        return place


_REAL_EXPORT = torch_export.export_graph


def _digest(files: Iterable[Path], more: str) -> str:
    found = hashlib.sha256(more.encode())
    for file in files:
        found.update(file.read_bytes() if file.exists() else b"absent")
    return found.hexdigest()
