from __future__ import annotations

import logging
import re
from collections.abc import Callable
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
def test_a_model_whose_alias_another_claims_is_refused_by_both_names(
    tmp_path: Path, claimed: dict[str, list[str]]
) -> None:
    write_card(tmp_path, card_table("other", **claimed))
    write_card(tmp_path, card_table("tiny", aliases=["small"]))
    with pytest.raises(CardError) as caught:
        read_registry(tmp_path).select(["other"])
    assert caught.value.message == (
        f"models other and tiny both claim {claimed['aliases'][-1]!r} "
        f"({tmp_path / 'other'}, {tmp_path / 'tiny'})"
    )


def test_two_folders_with_the_same_model_are_refused(tmp_path: Path) -> None:
    write_card(tmp_path / "a", card_table())
    write_card(tmp_path / "b", card_table())
    with pytest.raises(CardError, match=r"claim 'tiny' \(.*/a/tiny, .*/b/tiny\)"):
        read_registry(tmp_path).select(["tiny"])


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


def test_a_malformed_card_leaves_the_others_and_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_card(tmp_path, card_table())
    broken = write_card(tmp_path, card_table("broken", pooling="max"))
    registry = read_registry(tmp_path)
    assert names(registry) == names(registry.select(["tiny"])) == ["tiny"]
    registry.warn_of_broken()
    ((_, level, line),) = caplog.record_tuples
    assert level == logging.WARNING
    assert line.startswith(f"card {broken / 'card.toml'}: pooling: ")


BROKEN: dict[str, Callable[[str], str | bytes]] = {
    "a wrong value": lambda text: text + '\nunheard_of = "x"',
    "no TOML": lambda text: "name = [",
    "no text": lambda text: b"\xff",
    "empty": lambda text: "",
    "nested deeply": lambda text: f"{text}\nx = {'[' * 5000}{']' * 5000}",
    "a number of too many digits": lambda text: f"{text}\nx = {'9' * 5000}",
}


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("folder", ["tiny", "org/large"])
def test_a_malformed_card_that_is_asked_for_by_name_is_an_error_that_names_it(
    tmp_path: Path, folder: str, damage: str
) -> None:
    card = write_card(tmp_path, card_table(folder)) / "card.toml"
    text = BROKEN[damage](card.read_text())
    card.write_bytes(text if isinstance(text, bytes) else text.encode())
    write_card(tmp_path, card_table("other"))
    with pytest.raises(CardError, match=f"^card {re.escape(str(card))}: "):
        read_registry(tmp_path).select(["other", folder])


def test_a_malformed_card_that_is_asked_for_by_alias_is_an_error_that_names_it(
    tmp_path: Path,
) -> None:
    table = card_table("broken", aliases=["small", "text-embedding-3-small"], pooling="max")
    card = write_card(tmp_path, table, "elsewhere") / "card.toml"
    write_card(tmp_path, card_table())
    for asked in ("broken", "small", "text-embedding-3-small"):
        with pytest.raises(CardError, match=f"^card {re.escape(str(card))}: pooling"):
            read_registry(tmp_path).select([asked])


def test_an_alias_that_no_card_tells_may_be_that_of_one_that_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.toml").write_text("aliases = [")
    write_card(tmp_path, card_table())
    with pytest.raises(SettingError) as caught:
        read_registry(tmp_path).select(["small"])
    expected = f"model small not found; models here: tiny; left out: card {tmp_path}/broken/"
    assert caught.value.message.startswith(expected)


def test_a_variant_of_a_malformed_card_is_an_error_that_names_both_when_asked_for(
    tmp_path: Path,
) -> None:
    base = write_card(tmp_path, card_table(pooling="max"))
    variant = write_card(tmp_path, variant_table(aliases=["small"]))
    write_card(tmp_path, card_table("other"))
    registry = read_registry(tmp_path)
    assert names(registry.select(["other"])) == ["other"]
    for asked in ("variant", "small"):
        with pytest.raises(CardError) as caught:
            registry.select([asked])
        expected = f"card {variant}/card.toml: base tiny: card {base}/card.toml: pooling: "
        assert caught.value.message.startswith(expected)


def test_an_installed_model_that_cannot_be_read_is_not_replaced_by_the_shipped_one(
    tmp_path: Path,
) -> None:
    write_card(tmp_path / "shipped", card_table())
    broken = write_card(tmp_path / "installed", card_table(pooling="max"))
    registry = read_registry(tmp_path / "shipped", tmp_path / "installed")
    assert registry.cards == ()
    with pytest.raises(CardError, match=re.escape(str(broken))):
        registry.select(["tiny"])


def test_a_shipped_model_that_cannot_be_read_is_replaced_by_an_installed_one(
    tmp_path: Path,
) -> None:
    write_card(tmp_path / "shipped", card_table(pooling="max"))
    write_card(tmp_path / "installed", card_table())
    registry = read_registry(tmp_path / "shipped", tmp_path / "installed")
    assert names(registry.select(["tiny"])) == ["tiny"]


def test_a_file_in_place_of_the_models_folder_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CardError, match=r"models folder .*/file is not a folder"):
        read_registry(tmp_path / "file")


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


def test_models_that_contradict_each_other_stop_only_who_asks_for_one_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_card(tmp_path / "a", card_table("same", aliases=["either"]))
    write_card(tmp_path / "b", card_table("same"))
    write_card(tmp_path, card_table("one", aliases=["small"]))
    write_card(tmp_path, card_table("two", aliases=["small", "second"]))
    write_card(tmp_path, card_table("three", aliases=["small"]))
    write_card(tmp_path, card_table("tiny"))
    registry = read_registry(tmp_path)
    assert names(registry) == names(registry.select(["tiny"])) == ["tiny"]
    for asked in ("same", "either"):
        with pytest.raises(CardError, match=r"^models same and same both claim 'same'"):
            registry.select(["tiny", asked])
    for asked in ("one", "two", "three", "small", "second"):
        with pytest.raises(CardError, match=r"^models one and three and two all claim 'small'"):
            registry.select(["tiny", asked])
    registry.warn_of_broken()
    assert [line.partition(" claim ")[0] for line in caplog.messages] == [
        "models same and same both",
        "models one and three and two all",
    ]


def test_two_installed_models_of_one_name_are_not_replaced_by_the_shipped_one(
    tmp_path: Path,
) -> None:
    write_card(tmp_path / "shipped", card_table())
    for folder in ("a", "b"):
        write_card(tmp_path / "installed" / folder, card_table())
    registry = read_registry(tmp_path / "shipped", tmp_path / "installed")
    with pytest.raises(CardError, match="both claim 'tiny'"):
        registry.select(["tiny"])


@pytest.mark.parametrize("fault", [{"pooling": "max"}, {}], ids=["malformed", "contradicting"])
def test_an_alias_of_a_card_that_is_left_out_takes_no_models_own_name(
    tmp_path: Path, fault: dict[str, str]
) -> None:
    write_card(tmp_path, card_table(aliases=["small"]))
    write_card(tmp_path, card_table("other", aliases=["tiny"], **fault))
    registry = read_registry(tmp_path)
    assert names(registry.select(["tiny"])) == ["tiny"]
    assert registry.select(["small"]).resolve("tiny").name == "tiny"
    with pytest.raises(CardError):
        registry.select(["other"])


def test_a_card_that_is_left_out_keeps_its_name_from_a_model_in_another_folder(
    tmp_path: Path,
) -> None:
    write_card(tmp_path, card_table())
    write_card(tmp_path, card_table(pooling="max"), "elsewhere")
    with pytest.raises(CardError, match=r"elsewhere/card\.toml: pooling"):
        read_registry(tmp_path).select(["tiny"])
