"""Folders and files that are no text embedding model, as people have them; none needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from server.delivery.bundle_format import MANIFEST, header

CONFIG = {"model_type": "bert", "max_position_embeddings": 512, "architectures": ["BertModel"]}
COMMIT, OTHER = "0123abc" * 5, "fedcba9" * 5
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db\n"
    "size 90868376\n"
)
POOLED = ("Transformer", "Pooling")

Make = Callable[[Path], Path]  # writes below an empty folder; returns what is to be imported


def whole(place: Path, **config: Any) -> Path:
    """A folder that has nothing strange: as much as is read before any weight is."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(CONFIG | config))
    (place / "tokenizer.json").write_text("{}")
    (place / "tokenizer_config.json").write_text("{}")
    save_file({"weight": np.ones(3, np.float32)}, place / "model.safetensors")
    return place


def model(
    *modules: str, files: dict[str, str] | None = None, weights: bool = True, **config: Any
) -> Make:
    """A whole folder with this config, these modules and these other files."""

    def make(place: Path) -> Path:
        folder = whole(place / "model", **config)
        if modules:
            kinds = [kind if "." in kind else f"sentence_transformers.{kind}" for kind in modules]
            listed = [{"idx": n, "path": "", "type": kind} for n, kind in enumerate(kinds)]
            (folder / "modules.json").write_text(json.dumps(listed))
        for name, content in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        if not weights:
            (folder / "model.safetensors").unlink()
        return folder

    return make


def without_weights(*files: str) -> Make:
    """A folder that holds these files, of no content that matters, and no safetensors."""
    return model(files=dict.fromkeys(files, "x"), weights=False)


def replaced(name: str, content: str) -> Make:
    """A whole folder, but one of its files holds something else."""
    return model(files={name: content})


def file(name: str, content: bytes = b"x") -> Make:
    """One file in place of a folder."""

    def make(place: Path) -> Path:
        (place / name).write_bytes(content)
        return place / name

    return make


def bundle(place: Path) -> Path:
    """The start of a bundle of this software."""
    (place / "models.tar").write_bytes(header(MANIFEST, 2) + b"{}")
    return place / "models.tar"


def cached(*commits: str, main: str | None = None, name: str = "e5-base-v2") -> Make:
    """A repository in the hub client's cache, with these snapshots; returns its folder."""

    def make(place: Path) -> Path:
        root = place / "hub" / f"models--intfloat--{name}"
        for part in ("blobs", "refs", "snapshots"):
            (root / part).mkdir(parents=True)
        for commit in commits:
            whole(root / "snapshots" / commit)
        if main:
            (root / "refs" / "main").write_text(main)
        return root

    return make


def cache(place: Path) -> Path:
    """The cache's top with two models."""
    cached(COMMIT)(place)
    return cached(OTHER, name="e5-small-v2")(place).parent


def absent_files(place: Path) -> Path:
    """What the hub client writes of files that a repository does not have."""
    root = cached(COMMIT)(place)
    (root / ".no_exist" / COMMIT).mkdir(parents=True)
    (root / ".no_exist" / COMMIT / "adapter_config.json").touch()
    return root / ".no_exist" / COMMIT


def unfinished(place: Path) -> Path:
    """A snapshot whose weights were on their way."""
    root = cached(COMMIT)(place)
    (root / "blobs" / "53aa51.incomplete").touch()
    (root / "snapshots" / COMMIT / "model.safetensors").unlink()
    return root / "snapshots" / COMMIT


def unfinished_copy(place: Path) -> Path:
    """The same of `hf download --local-dir`."""
    return without_weights(".cache/huggingface/download/Xk2.53aa51.incomplete")(place)


def dangling(place: Path) -> Path:
    """A snapshot that was copied without the blobs that its links point to."""
    folder = whole(place / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/53aa51")
    return folder


def cut_off(place: Path) -> Path:
    """Weights of which the end is missing."""
    folder = whole(place / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4])
    return folder


def empty(place: Path) -> Path:
    """A folder of nothing."""
    (place / "model").mkdir()
    return place / "model"


def around(place: Path) -> Path:
    """What unpacking a wheel gives."""
    whole(place / "unpacked" / "model")
    return place / "unpacked"


def shards(*there: int, index: bool = True) -> Make:
    """Two shards, of which these are there."""

    def make(place: Path) -> Path:
        folder = without_weights()(place)
        names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        for number in there:
            save_file({"a": np.ones(1, np.float32)}, folder / names[number - 1])
        if index:
            content = {"weight_map": dict(zip("ab", names, strict=True))}
            (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        return folder

    return make
