"""Pooling and normalisation are said by modules.json, the table of families or a person; or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.errors import ImportRefused
from server.importing.head import Head
from server.importing.head_choice import choose_head
from server.importing.told import tell
from tests.importing.test_head import write

BGE = ("", "", "bge-small-en-v1.5")
TABLE = "table of families, from BAAI/bge-base-en-v1.5"


def lines(head: Head) -> list[str]:
    told: list[str] = []
    tell(head.told, told.append)
    return told


def test_a_known_name_gets_what_is_published_and_says_so(tmp_path: Path) -> None:
    head = choose_head(tmp_path, names=BGE)
    assert head == Head("cls", (), normalize=True)
    assert lines(head) == [
        f"pooling: cls ({TABLE})",
        "dense layers: none (no modules.json names any)",
        f"normalize: yes ({TABLE})",
    ]


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        ({}, "say --pooling mean, cls or last_token and --normalize or --no-normalize, as"),
        ({"pooling": "mean"}, "say --normalize or --no-normalize, as"),
        ({"normalize": False}, "say --pooling mean, cls or last_token, as"),
    ],
)
def test_what_nobody_says_is_refused_with_the_flags_that_say_it(
    tmp_path: Path, flags: dict[str, Any], missing: str
) -> None:
    with pytest.raises(ImportRefused, match=missing) as refused:
        choose_head(tmp_path, names=("mine", "", "output"), **flags)
    assert refused.value.message.startswith(f"{tmp_path}: no modules.json says how token vectors")


@pytest.mark.parametrize("normalize", [True, False])
def test_a_person_says_it_where_nobody_else_does(tmp_path: Path, normalize: bool) -> None:
    head = choose_head(tmp_path, names=("mine",), pooling="last_token", normalize=normalize)
    assert head == Head("last_token", (), normalize)
    assert lines(head) == [
        "pooling: last_token (--pooling)",
        "dense layers: none (no modules.json names any)",
        "normalize: yes (--normalize)" if normalize else "normalize: no (--no-normalize)",
    ]


def test_a_persons_word_goes_before_the_table_and_the_line_tells_both(tmp_path: Path) -> None:
    head = choose_head(tmp_path, names=BGE, pooling="mean", normalize=True)
    assert head == Head("mean", (), normalize=True)
    assert lines(head)[0] == f"pooling: mean (--pooling; the {TABLE}, has cls)"
    assert lines(head)[2] == "normalize: yes (--normalize)"
    half = choose_head(tmp_path, names=BGE, normalize=False)
    assert half == Head("cls", (), normalize=False)
    assert lines(half)[2] == f"normalize: no (--no-normalize; the {TABLE}, has yes)"


def test_the_model_that_a_folder_was_trained_from_decides_nothing_and_is_a_hint(
    tmp_path: Path,
) -> None:
    hint = (
        r"was made from intfloat/e5-small-v2, for which --pooling mean --normalize would be right\)"
    )
    with pytest.raises(ImportRefused, match=hint):
        choose_head(tmp_path, names=("output",), made_from="intfloat/e5-small-v2")


@pytest.mark.parametrize("flags", [{}, {"pooling": "mean", "normalize": True}])
def test_dense_layers_of_a_known_family_are_not_left_out(
    tmp_path: Path, flags: dict[str, Any]
) -> None:
    with pytest.raises(ImportRefused, match=r"lost \(models of google/embeddinggemma-300m have"):
        choose_head(tmp_path, names=("embeddinggemma-300m",), **flags)


def test_a_dense_layer_that_no_file_names_is_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "2_Dense").mkdir()
    with pytest.raises(ImportRefused, match=r"layers are lost \(2_Dense\); .* as a whole$"):
        choose_head(tmp_path, names=BGE, pooling="cls", normalize=True)


def test_a_pooling_file_that_nothing_names_is_told_where_it_says_otherwise(tmp_path: Path) -> None:
    write(tmp_path, "Transformer", "Pooling", _1_Pooling={"pooling_mode": "mean"})
    (tmp_path / "modules.json").unlink()
    warning = "warning: pooling: 1_Pooling/config.json says mean, but no modules.json names it"
    head = choose_head(tmp_path, names=BGE)
    assert head.pooling == "cls"
    assert lines(head)[1] == warning
    agreeing = choose_head(tmp_path, names=("e5-base",))
    assert not any(line.startswith("warning") for line in lines(agreeing))


def test_the_folders_own_word_holds_and_a_table_that_differs_is_told(tmp_path: Path) -> None:
    write(tmp_path, "Transformer", "Pooling", _1_Pooling={"pooling_mode": "mean"})
    head = choose_head(tmp_path, names=BGE)
    assert head == Head("mean", (), normalize=False)
    assert lines(head) == [
        "pooling: mean (1_Pooling/config.json)",
        f"warning: pooling: the folder's own word holds, but the {TABLE}, has cls",
        "dense layers: none (modules.json)",
        "normalize: no (modules.json)",
        f"warning: normalize: the folder's own word holds, but the {TABLE}, has yes",
    ]
    unknown = lines(choose_head(tmp_path, names=("mine",), made_from="BAAI/bge-small-en"))
    assert not any(line.startswith("warning") for line in unknown)


@pytest.mark.parametrize("flags", [{"pooling": "mean"}, {"normalize": False}])
def test_flags_are_not_for_a_folder_that_says_it_itself(
    tmp_path: Path, flags: dict[str, Any]
) -> None:
    (tmp_path / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Transformer", "path": ""}])
    )
    with pytest.raises(ImportRefused, match="only Transformer, Pooling"):
        choose_head(tmp_path, **flags)
    write(tmp_path, "Transformer", "Pooling", _1_Pooling={"pooling_mode": "mean"})
    with pytest.raises(ImportRefused, match="are for folders without it"):
        choose_head(tmp_path, **flags)
