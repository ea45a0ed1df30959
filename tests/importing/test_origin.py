"""What a path, a README and a revision tell of a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.importing import origin
from server.importing.plan import Wishes

FROM_HUB = Wishes(origin=("org/model", "c" * 40))


def lying_at(path: Path, **config: str) -> Any:
    path.mkdir(parents=True)
    return SimpleNamespace(
        path=path,
        given_path=path,
        config=config,
        weights=("model.safetensors", "gone.safetensors"),
        transformer="",
    )


def test_a_plain_folder_gives_its_name_and_no_publisher(tmp_path: Path) -> None:
    folder = lying_at(tmp_path / "bert", _name_or_path="org/original")
    assert origin.given_name(folder.path) == "bert"
    assert origin.publisher(folder, Wishes()) == "imported"
    assert origin.known_names(folder, "mine", Wishes()) == ("mine", "", "", "bert", "org/original")
    assert "org/original" not in origin.own_names(
        folder.path, Wishes(name="mine")
    )  # may be its base
    assert origin.description(folder, Wishes()) == "Imported from bert."


def test_the_hub_clients_cache_gives_both(tmp_path: Path) -> None:
    folder = lying_at(tmp_path / "models--intfloat--e5-small-v2" / "snapshots" / "0123abc")
    assert origin.given_name(folder.path) == "e5-small-v2"
    assert origin.publisher(folder, Wishes()) == "intfloat"
    assert "e5-small-v2" in origin.known_names(folder, "mine", Wishes())


def test_what_was_pulled_is_its_repositorys(tmp_path: Path) -> None:
    folder = lying_at(tmp_path / "download")
    assert origin.publisher(folder, FROM_HUB) == "org"
    assert "org/model" in origin.known_names(folder, "mine", FROM_HUB)
    assert origin.description(folder, FROM_HUB) == f"Imported from org/model@{'c' * 40}."


@pytest.mark.parametrize(
    ("readme", "found"),
    [
        ("---\nlicense: mit\n---\nA model.", "mit"),
        ("---\nlicense: [mit, other]\n---\n", "unknown"),
        ("---\nlicense: {\n---\n", "unknown"),
        ("no metadata", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_license_is_the_readmes_if_it_says_one(
    tmp_path: Path, readme: str | None, found: str
) -> None:
    folder = lying_at(tmp_path / "bert")
    if readme is not None:
        (folder.path / "README.md").write_text(readme)
    assert origin.license_name(folder) == found


@pytest.mark.parametrize("published", [b"as here", b"before it was changed", None])
def test_only_files_that_stay_as_published_can_be_had_from_the_hub(
    tmp_path: Path, published: bytes | None
) -> None:
    """A tokenizer that was made or changed here is not there, nor is what the model does not use."""
    folder = lying_at(tmp_path / "bert")
    if published is not None:
        (folder.path / "tokenizer.json").write_bytes(published)
    files = ["graph.onnx", "model.safetensors", "tokenizer.json"]
    pin = SimpleNamespace(sha256=hashlib.sha256(b"as here").hexdigest())
    card: Any = SimpleNamespace(files=dict.fromkeys(files, pin))
    source = origin.hub_source(folder, card, ("org/model", "abc"))
    kept = ("model.safetensors", *(["tokenizer.json"] if published == b"as here" else []))
    assert (source.repository, source.revision, source.files) == ("org/model", "abc", kept)
