"""Tiny model folders, written by hand, that the tests of the catalog and of the command share."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server import __version__

FILES: Mapping[str, bytes] = {
    "graph.onnx": b"a graph",
    "model.safetensors": b"some weights",
    "tokenizer.json": b"a tokenizer",
}
CPU_PRECISION: Mapping[str, object] = {
    "dtype": "int8",
    "measured_on": "some texts",
    "texts": 300,
    "mean_cosine": 0.9993,
    "min_cosine": 0.9976,
    "neighbours_kept": 0.975,
}


def pins(files: Mapping[str, bytes]) -> dict[str, dict[str, object]]:
    """The card's `files` table for these contents."""
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }


def card_table(name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A complete and valid card that vouches for FILES, with some keys changed."""
    table = {
        "name": name,
        "description": "A model for tests.",
        "license": "Apache-2.0",
        "owned_by": "tests",
        "created": datetime.date(2021, 8, 30),
        "architecture": "bert",
        "embedding_dim": 8,
        "max_input_tokens": 16,
        "pooling": "mean",
        "normalize": True,
        "dtype": "float32",
        "files": pins(FILES),
    }
    return table | changes


def variant_table(name: str = "variant", base: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A card that shares the encoder of `base`."""
    return {"name": name, "description": "A variant.", "base": base} | changes


def write_card(models_dir: Path, table: Mapping[str, Any], folder_name: str = "") -> Path:
    """Write `card.toml` into a folder below `models_dir`, named as the model unless told."""
    folder = models_dir / (folder_name or str(table["name"]))
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)} = {_toml(value)}" for key, value in table.items()]
    (folder / "card.toml").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_model(
    models_dir: Path, table: Mapping[str, Any], files: Mapping[str, bytes] = FILES
) -> Path:
    """Write a card and the files beside it; returns the folder."""
    folder = write_card(models_dir, table)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _toml(value: object) -> str:
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def bundle_bytes(
    files: Mapping[str, bytes],
    *,
    manifest: bytes | None = None,
    software: str | None = None,
    format: int = 2,  # noqa: A002
) -> bytes:
    """A bundle by hand, so that it may hold what `bundle create` would not write."""
    if manifest is None:
        table = {
            "files": pins(files),
            "format": format,
            "software": software or f"embedding-server {__version__}",
        }
        manifest = json.dumps(table, indent=1, sort_keys=True).encode() + b"\n"
    packed = io.BytesIO()
    for name, content in {"bundle.json": manifest, **dict(sorted(files.items()))}.items():
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(content), 0o644, 315_532_800
        packed.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8"))
        packed.write(content + bytes(-len(content) % 512))
    return packed.getvalue() + bytes(1024)
