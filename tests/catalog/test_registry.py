from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.catalog.registry import Registry, read_registry
from server.errors import CardError, ModelNotFound, SettingError
from tests.catalog import card_table, variant_table, write_card


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    write_card(tmp_path, card_table("tiny", aliases=["small", "text-embedding-3-small"]))
    write_card(tmp_path, card_table("org/large", aliases=["big"]))
    write_card(tmp_path, variant_table("variant"))
    return read_registry(tmp_path)


def names(registry: Registry) -> list[str]:
    return [card.name for card in registry.cards]


def test_every_card_below_the_folder_is_found_in_the_order_of_folders(registry: Registry) -> None:
    assert names(registry) == ["org/large", "tiny", "variant"]


def test_a_model_folder_that_is_a_link_is_found_too(tmp_path: Path) -> None:
    elsewhere = write_card(tmp_path / "elsewhere", card_table())
    (tmp_path / "models/org").mkdir(parents=True)
    (tmp_path / "models/tiny").symlink_to(elsewhere)
    large = write_card(tmp_path / "elsewhere", card_table("large"))
    (tmp_path / "models/org/large").symlink_to(large)
    assert names(read_registry(tmp_path / "models")) == ["large", "tiny"]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("tiny", "tiny"),
        ("small", "tiny"),
        ("text-embedding-3-small", "tiny"),
        ("big", "org/large"),
        ("org/large", "org/large"),
    ],
)
def test_a_name_and_every_alias_lead_to_the_card(registry: Registry, asked: str, name: str) -> None:
    assert registry.resolve(asked).name == name


@pytest.mark.parametrize("asked", ["", "TINY", "tiny ", "large", "gpt-5"])
def test_an_unknown_name_is_answered_with_the_models_that_are_served(
    registry: Registry, asked: str
) -> None:
    with pytest.raises(ModelNotFound) as caught:
        registry.select(["variant", "tiny"]).resolve(asked)
    assert caught.value.message == (
        f"The model '{asked}' does not exist on this server. It serves: variant, tiny."
    )


@pytest.mark.parametrize(
    "claimed", [{"aliases": ["small"]}, {"aliases": ["tiny"]}, {"aliases": ["x", "small"]}], ids=str
)
def test_two_models_that_claim_one_name_are_refused_by_both_names(
    tmp_path: Path, claimed: dict[str, list[str]]
) -> None:
    write_card(tmp_path, card_table("other", **claimed))
    write_card(tmp_path, card_table("tiny", aliases=["small"]))
    with pytest.raises(CardError) as caught:
        read_registry(tmp_path)
    assert caught.value.message == (
        f"models other and tiny both claim {claimed['aliases'][-1]!r} "
        f"({tmp_path / 'other'}, {tmp_path / 'tiny'})"
    )


def test_two_folders_with_the_same_model_are_refused(tmp_path: Path) -> None:
    write_card(tmp_path / "a", card_table())
    write_card(tmp_path / "b", card_table())
    with pytest.raises(CardError, match=r"claim 'tiny' \(.*/a/tiny, .*/b/tiny\)"):
        read_registry(tmp_path)


def test_an_alias_equal_to_the_cards_own_name_does_no_harm(tmp_path: Path) -> None:
    write_card(tmp_path, card_table("tiny", aliases=["tiny", "small", "small"]))
    assert read_registry(tmp_path).resolve("small").name == "tiny"


def test_a_selection_keeps_the_order_asked_for(registry: Registry) -> None:
    assert names(registry.select(["variant", "org/large", "tiny"])) == [
        "variant",
        "org/large",
        "tiny",
    ]


def test_a_model_selected_twice_is_there_once(registry: Registry) -> None:
    assert names(registry.select(["tiny", "big", "small", "tiny"])) == ["tiny", "org/large"]


def test_a_selection_knows_nothing_of_the_others(registry: Registry) -> None:
    chosen = registry.select(["tiny"])
    with pytest.raises(ModelNotFound, match=re.escape("It serves: tiny.")):
        chosen.resolve("big")


def test_selecting_an_unknown_name_lists_what_there_is_and_the_nearest(registry: Registry) -> None:
    with pytest.raises(SettingError) as caught:
        registry.select(["tiny", "varient"])
    assert caught.value.message == (
        "model varient not found; models here: org/large, tiny, variant; did you mean variant?"
    )


def test_selecting_a_name_that_resembles_nothing_makes_no_guess(registry: Registry) -> None:
    with pytest.raises(SettingError, match=r"variant$"):
        registry.select(["zzz"])


def test_selecting_nothing_is_refused(registry: Registry) -> None:
    with pytest.raises(SettingError, match="at least one model"):
        registry.select([])


def test_an_empty_models_folder_says_so_when_a_model_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="model tiny not found; models here: none"):
        read_registry(tmp_path).select(["tiny"])


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_a_models_folder_that_is_none_is_refused_by_its_path(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CardError, match=re.escape(str(tmp_path / kind))):
        read_registry(tmp_path / kind)


def test_one_malformed_card_stops_the_reading_with_its_path(tmp_path: Path) -> None:
    write_card(tmp_path, card_table())
    broken = write_card(tmp_path, card_table("broken", pooling="max"))
    with pytest.raises(CardError, match=re.escape(str(broken / "card.toml"))):
        read_registry(tmp_path)


def test_an_installed_model_takes_the_place_of_the_shipped_one(tmp_path: Path) -> None:
    write_card(tmp_path / "shipped", card_table("tiny", embedding_dim=8))
    write_card(tmp_path / "shipped", card_table("other"))
    write_card(tmp_path / "installed", card_table("tiny", embedding_dim=4))
    write_card(tmp_path / "installed", variant_table("variant"))
    registry = read_registry(tmp_path / "shipped", tmp_path / "installed")
    assert sorted(names(registry)) == ["other", "tiny", "variant"]
    assert registry.resolve("tiny").embedding_dim == 4
    assert registry.resolve("variant").embedding_dim == 4


def test_the_folder_of_installed_models_need_not_be_there(tmp_path: Path) -> None:
    write_card(tmp_path / "shipped", card_table("tiny"))
    assert names(read_registry(tmp_path / "shipped", tmp_path / "none")) == ["tiny"]
