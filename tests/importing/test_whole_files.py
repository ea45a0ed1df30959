"""Files that a clone, a copy or a download left in the place of others are named, with a remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing.whole_files import refuse_broken_file, refuse_broken_files
from tests.importing.strange_folders import (
    POINTER,
    Make,
    cut_off,
    dangling,
    model,
    replaced,
    shards,
)

WEIGHTS = "model.safetensors"
PAGE = "\n<!DOCTYPE html><html><head><title>Sign in</title>"
BROKEN: dict[str, tuple[Make, str]] = {
    "LFS weights": (replaced(WEIGHTS, POINTER), f"{WEIGHTS}: is a Git LFS pointer, not the file"),
    "LFS tokenizer": (replaced("tokenizer.json", POINTER), "tokenizer.json: is a Git LFS pointer"),
    "LFS config": (replaced("config.json", POINTER), "run `git lfs pull` in {place}/model"),
    "LFS dense": (replaced("2_Dense/model.safetensors", POINTER), "2_Dense/model.safetensors: is a Git"),
    "LFS shard": (replaced("model-00001-of-00002.safetensors", POINTER), "is a Git LFS pointer"),
    "web page": (replaced("config.json", PAGE), "config.json: is a web page, not the file itself"),
    "answer": (replaced(WEIGHTS, "Entry not found"), "is an error message of the hub, not the file"),
    "empty weights": (replaced(WEIGHTS, ""), f"{WEIGHTS}: is empty: the download was not finished"),
    "dangling": (dangling, f"{WEIGHTS}: No such file or directory: it is a link to ../../blobs/53aa51"),
    "cut off": (cut_off, f"{WEIGHTS}: not a safetensors file: it is cut off; it is damaged, or"),
    "no header": (replaced(WEIGHTS, "x" * 99), f"{WEIGHTS}: not a safetensors file: "),
    "missing shard": (
        shards(1),
        "1 of the 2 files of weights that model.safetensors.index.json names are missing: model-00002-",
    ),
    "shards without index": (shards(1, 2, index=False), "but no model.safetensors.index.json, which"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_another_thing_is_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    make, said = BROKEN[kind]
    folder = make(tmp_path)
    with pytest.raises(ImportRefused, match=re.escape(said.format(place=tmp_path))):
        refuse_broken_files(folder)


@pytest.mark.parametrize(
    "make",
    [
        model(),
        shards(1, 2),
        model(files={"pytorch_model.bin": POINTER, "onnx/model.onnx": POINTER, "vocab.json": ""}),
    ],
)
def test_a_file_that_no_import_reads_may_be_anything(tmp_path: Path, make: Make) -> None:
    refuse_broken_files(make(tmp_path))


def test_a_publishers_graph_is_looked_at_when_it_is_used(tmp_path: Path) -> None:
    graph = replaced("onnx/model.onnx", POINTER)(tmp_path) / "onnx" / "model.onnx"
    with pytest.raises(ImportRefused, match=r"onnx/model\.onnx: is a Git LFS pointer"):
        refuse_broken_file(graph)
