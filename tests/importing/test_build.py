"""Which graph an import takes, and how its files come into the new folder."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel

from server.catalog.card import TOKENIZER_FILE
from server.errors import ImportRefused
from server.importing import build, packages
from server.importing.build import makes_own_graph, pin_files
from server.importing.plan import Wishes

PUBLISHED = "onnx/model.onnx"


def folder(*, weights: bool, graph: bool, not_stock: str | None = None) -> Any:
    return SimpleNamespace(
        path=Path("folder"),
        weights=("model.safetensors",) if weights else (),
        graphs=(PUBLISHED,) if graph else (),
        not_stock=not_stock,
    )


@pytest.mark.parametrize(
    ("wished", "torch", "weights", "graph", "own"),
    [
        (None, True, True, True, True),
        (None, True, True, False, True),
        (None, False, True, True, False),
        (None, True, False, True, False),
        ("own", True, True, True, True),
        ("published", True, True, True, False),
        ("published", False, False, True, False),
    ],
)
def test_a_graph_is_made_where_it_can_be_unless_the_publishers_is_wished_for(
    monkeypatch: pytest.MonkeyPatch, wished: Any, torch: bool, weights: bool, graph: bool, own: bool
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: torch)
    there = folder(weights=weights, graph=graph)
    assert makes_own_graph(there, Wishes(graph=wished)) is own


@pytest.mark.parametrize(
    ("wished", "torch", "weights", "graph", "said"),
    [
        ("published", True, True, False, "folder: has no ONNX graph$"),
        ("own", True, False, True, "has no safetensors file to make a graph from"),
        (None, True, False, False, "has no safetensors file to make a graph from"),
        (None, False, True, False, "has no ONNX graph, and making one needs torch: "),
        ("own", False, True, True, "making one needs torch: "),
    ],
)
def test_a_graph_that_cannot_be_had_is_refused_with_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, wished: Any, torch: bool, weights: bool, graph: bool, said: str
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: torch)
    with pytest.raises(ImportRefused, match=said):
        makes_own_graph(folder(weights=weights, graph=graph), Wishes(graph=wished))


def test_a_named_graph_is_used_even_where_another_could_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: True)
    there = folder(weights=True, graph=True)
    assert not makes_own_graph(there, Wishes(onnx=PUBLISHED))
    with pytest.raises(ImportRefused, match="--onnx names a graph of the publisher's, and"):
        makes_own_graph(there, Wishes(onnx=PUBLISHED, graph="own"))


def test_which_of_several_graphs_is_meant_matters_only_where_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: True)
    there = folder(weights=True, graph=True)
    there.graphs = ("onnx/model_O2.onnx", "onnx/model_O3.onnx")
    assert makes_own_graph(there, Wishes())
    with pytest.raises(
        ImportRefused, match=r"several .*: onnx/model_O2\.onnx, onnx/model_O3\.onnx"
    ):
        makes_own_graph(there, Wishes(graph="published"))


OTHER = "its own code (modeling_own.Own) would have to be run"


@pytest.mark.parametrize("wished", [None, "published"])
def test_a_model_of_own_code_is_the_publishers_graph_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, wished: Any
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: True)
    there = folder(weights=True, graph=True, not_stock=OTHER)
    assert makes_own_graph(there, Wishes(graph=wished)) is False


@pytest.mark.parametrize(
    ("wished", "graph", "hint"),
    [
        ("own", True, "--graph published takes the publisher's graph"),
        ("own", False, "only an ONNX graph of the publisher's could be imported"),
        (None, False, "only an ONNX graph of the publisher's could be imported"),
    ],
)
def test_a_model_of_own_code_is_refused_where_a_graph_would_have_to_be_made(
    monkeypatch: pytest.MonkeyPatch, wished: Any, graph: bool, hint: str
) -> None:
    there = folder(weights=True, graph=graph, not_stock=OTHER)
    for torch in (True, False):
        monkeypatch.setattr(packages, "is_installed", lambda package, known=torch: known)
        with pytest.raises(ImportRefused) as refused:
            makes_own_graph(there, Wishes(graph=wished))
        assert refused.value.message == f"folder: {OTHER}; {hint}"


def test_every_file_is_pinned_by_its_path_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "2_Dense").mkdir()
    files = {"graph.onnx": b"graph", "2_Dense/model.safetensors": b"layer", "a": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pins = pin_files(tmp_path)
    assert list(pins) == ["2_Dense/model.safetensors", "a", "graph.onnx"]
    for name, content in files.items():
        assert pins[name].bytes == len(content)
        assert pins[name].sha256 == hashlib.sha256(content).hexdigest()


def test_weights_for_which_the_disk_has_no_room_are_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    made.mkdir()
    (source / "model.safetensors").write_bytes(b"12345")
    free = SimpleNamespace(free=build.SPARE_BYTES + 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    RustTokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(source / TOKENIZER_FILE))
    there: Any = SimpleNamespace(
        path=source,
        transformer_path=source,
        weights=("model.safetensors",),
        graphs=(),
        config={"model_type": "own"},
        head=SimpleNamespace(pooling="mean"),
        lower_case=False,
        not_stock=None,
    )
    monkeypatch.setattr(packages, "is_installed", lambda package: True)
    with pytest.raises(ImportRefused, match=r"67,108,869 bytes are needed and 67,108,868 are free"):
        build.build_files(there, made, Wishes(), lambda line: None)
    assert not (made / "model.safetensors").exists()
