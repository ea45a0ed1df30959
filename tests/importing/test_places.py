"""Names that would keep servers from starting, or models from being asked for, are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import CardError, ImportRefused
from server.importing.places import check_free, choose_name
from server.importing.plan import Wishes
from tests.catalog import card_table, variant_table, write_card


@pytest.mark.parametrize("wished", [None, "mine"])
def test_the_name_is_the_wished_one_or_the_folders(tmp_path: Path, wished: str | None) -> None:
    folder: Any = SimpleNamespace(given_path=tmp_path / "bert")
    assert choose_name(folder, Wishes(name=wished)) == (wished or "bert")


def test_a_folder_whose_name_cannot_be_a_models_needs_a_wish(tmp_path: Path) -> None:
    folder: Any = SimpleNamespace(given_path=tmp_path / "my model")
    with pytest.raises(ImportRefused, match="'my model' cannot be a model's name"):
        choose_name(folder, Wishes())


def test_nothing_is_in_the_way_where_nothing_is(tmp_path: Path) -> None:
    check_free(tmp_path / "absent", "tiny", Wishes(aliases=("small",)))


@pytest.mark.parametrize(
    ("name", "wishes", "said"),
    [
        ("tiny", Wishes(), "model tiny is there already .*--replace"),
        ("other", Wishes(aliases=("tiny",)), "'tiny' is what clients call the model tiny"),
        ("small", Wishes(), "'small' is what clients call the model tiny"),
        ("org", Wishes(replace=True), "org holds other models"),
        ("tiny/other", Wishes(), "tiny is a model itself"),
        ("base", Wishes(replace=True), "model variant is made of the base that is there"),
        ("../tiny", Wishes(), "cannot be a model's name"),
        ("other", Wishes(aliases=("a,b",)), "--alias: 'a,b' is empty or holds white space"),
    ],
)
def test_what_is_taken_is_refused_with_who_has_it(
    tmp_path: Path, name: str, wishes: Wishes, said: str
) -> None:
    write_card(tmp_path, card_table("tiny", aliases=["small"]))
    write_card(tmp_path, card_table("org/one"))
    write_card(tmp_path, card_table("base"))
    write_card(tmp_path, variant_table("variant", base="base"))
    with pytest.raises(ImportRefused, match=said):
        check_free(tmp_path, name, wishes)


def test_a_model_may_be_replaced_and_keep_its_own_names(tmp_path: Path) -> None:
    write_card(tmp_path, card_table("tiny", aliases=["small"]))
    check_free(tmp_path, "tiny", Wishes(replace=True, aliases=("small",)))


def test_a_model_that_came_with_the_software_keeps_its_name(tmp_path: Path) -> None:
    write_card(tmp_path / "shipped", card_table("tiny"))
    with pytest.raises(ImportRefused, match="model tiny came with this software"):
        check_free(tmp_path / "data", "tiny", Wishes(replace=True), tmp_path / "shipped")


def test_a_broken_card_is_in_the_way_of_the_names_it_claims_alone(tmp_path: Path) -> None:
    write_card(tmp_path, card_table("broken", aliases=["sick"], pooling="max"))
    check_free(tmp_path, "other", Wishes())
    with pytest.raises(CardError, match="pooling"):
        check_free(tmp_path, "other", Wishes(aliases=("sick",)))
    check_free(tmp_path, "broken", Wishes(aliases=("sick",), replace=True))  # its own place
