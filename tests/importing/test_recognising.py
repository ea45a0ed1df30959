"""What is no model's folder is named, and the line says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing.importer import import_model
from server.importing.plan import Wishes
from server.importing.recognising import refuse_what_is_no_model
from tests.importing.strange_folders import (
    COMMIT,
    OTHER,
    Make,
    absent_files,
    around,
    bundle,
    cache,
    cached,
    empty,
    file,
    model,
    unfinished,
    unfinished_copy,
    without_weights,
)

CACHED = "{place}/hub/models--intfloat--e5-base-v2"
STRANGE: dict[str, tuple[Make, str]] = {
    "wheel": (file("model-1.0-py3-none-any.whl"), "is a wheel; unpack it (python -m zipfile -e"),
    "bundle": (bundle, "is a bundle of this software: "),
    "zip": (file("model.zip"), "is an archive; unpack it"),
    "tar": (file("model.tar.gz"), "is an archive; unpack it"),
    "GGUF file": (
        file("model-q8_0.gguf"),
        "holds weights of llama.cpp (GGUF), which cannot be read",
    ),
    "GGUF by content": (file("blob", b"GGUF\3"), "holds weights of llama.cpp (GGUF), which cannot"),
    "one file": (file("model.safetensors"), "is one file of a model; import its folder: {place}"),
    "empty folder": (empty, "is an empty folder"),
    "installed model": (model(files={"card.toml": ""}), "is a model of this server already"),
    "cached, one snapshot": (
        cached(COMMIT),
        f"import the snapshot in it: {CACHED}/snapshots/{COMMIT}",
    ),
    "cached, several": (
        cached(COMMIT, OTHER, main=OTHER),
        f"import the snapshot in it: {CACHED}/snapshots/{OTHER} (others: {COMMIT})",
    ),
    "cached, none": (cached(), "is of the hub client's cache and has no snapshot: fetch"),
    "snapshots": (
        lambda place: cached(COMMIT)(place) / "snapshots",
        f"{CACHED}/snapshots/{COMMIT}",
    ),
    "cache": (
        cache,
        f"is the hub client's cache; import a snapshot in it: {CACHED}/snapshots/{COMMIT}, ",
    ),
    "cache's home": (lambda place: cache(place).parent, f"import a snapshot in it: {CACHED}"),
    "absent files": (absent_files, f"does not have; import {CACHED}/snapshots/{COMMIT}"),
    "GGUF folder": (without_weights("q8_0.gguf"), "holds weights of llama.cpp (GGUF), which"),
    "Core ML": (
        without_weights("model.mlpackage/x"),
        "holds a Core ML model, which cannot be read",
    ),
    "OpenVINO": (
        without_weights("openvino/openvino_model.xml"),
        "holds OpenVINO's form of a model",
    ),
    "MLX": (without_weights("weights.npz"), "holds weights of MLX, which cannot be read here"),
    "TensorFlow": (without_weights("tf_model.h5"), "holds weights of TensorFlow, which cannot be"),
    "Flax": (without_weights("flax_model.msgpack"), "holds weights of Flax, which cannot be read"),
    "diffusers": (model(files={"model_index.json": "{}"}), "makes images (diffusers)"),
    "unfinished": (
        unfinished,
        "has no weights, and a download was not finished (53aa51.incomplete)",
    ),
    "unfinished copy": (unfinished_copy, "a download was not finished (Xk2.53aa51.incomplete)"),
    "unpacked wheel": (around, "import one in it: {place}/unpacked/model"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_models_folder_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    make, said = STRANGE[kind]
    path = make(tmp_path)
    with pytest.raises(ImportRefused) as refused:
        refuse_what_is_no_model(path)
    refused.match(rf"^{re.escape(str(path))} (is|has|holds|makes) ")
    assert said.format(place=tmp_path) in refused.value.message
    assert "\n" not in refused.value.message


def test_an_address_of_the_hub_gets_the_command_that_fetches_it() -> None:
    path = Path("https://huggingface.co/intfloat/e5-base-v2/tree/main")
    with pytest.raises(ImportRefused, match=r"models pull intfloat/e5-base-v2$"):
        refuse_what_is_no_model(path)
    with pytest.raises(ImportRefused, match=r"^https://huggingface\.co/"):
        refuse_what_is_no_model(path)


@pytest.mark.parametrize(
    "make",
    [
        model(),
        model(files={"model-q8_0.gguf": "x", "tf_model.h5": "x", "openvino/m.xml": "x"}),
        model(files={"adapter_config.json": "{}"}),
        without_weights("adapter_config.json"),  # whether its base is there is another question
        model(files={"optimizer.pt": "x", "trainer_state.json": "{}"}),
        without_weights("onnx/model.onnx", "openvino/openvino_model.xml"),
        lambda place: cached(COMMIT)(place) / "snapshots" / COMMIT,
    ],
)
def test_a_folder_with_weights_that_can_be_read_is_let_pass(tmp_path: Path, make: Make) -> None:
    refuse_what_is_no_model(make(tmp_path))


def test_pickles_and_what_is_not_there_are_left_to_others(tmp_path: Path) -> None:
    refuse_what_is_no_model(without_weights("pytorch_model.bin", "tf_model.h5")(tmp_path))
    refuse_what_is_no_model(tmp_path / "absent")


def test_a_path_that_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="File name too long"):
        import_model(Path("x" * 300), tmp_path / "models", Wishes(), lambda line: None)


def test_an_import_looks_before_it_reads_anything_else(tmp_path: Path) -> None:
    path = file("model.gguf")(tmp_path)
    with pytest.raises(ImportRefused, match=r"holds weights of llama\.cpp"):
        import_model(path, tmp_path / "models", Wishes(), lambda line: None)
