from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server.catalog.card import Card
from server.catalog.card_file import read_card
from server.catalog.verify import check_files, check_present, differences, missing_files
from server.errors import ModelFileError
from tests.catalog import FILES, card_table, pins, variant_table, write_model

ROTATION = {"rotation.safetensors": b"a rotation"}


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return read_card(write_model(tmp_path, card_table()), tmp_path)


@pytest.fixture
def variant(card: Card, tmp_path: Path) -> Card:
    table = variant_table(files=pins(ROTATION))
    return read_card(write_model(tmp_path, table, ROTATION), tmp_path)


def spoil(path: Path) -> None:
    """Change one bit and keep the size, as a failing disk would."""
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def test_a_model_whose_files_are_all_right_passes(card: Card, variant: Card) -> None:
    for each in (card, variant):
        assert missing_files(each) == []
        check_present(each)
        check_files(each)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["absent", "cut off", "too long", "a folder"],
)
def test_a_file_that_is_absent_or_of_another_size_is_named_with_the_way_to_get_it(
    card: Card, file: str, damage: Callable[[Path], None]
) -> None:
    damage(card.path(file))
    assert missing_files(card) == [f"tiny/{file}"]
    with pytest.raises(ModelFileError) as caught:
        check_present(card)
    assert f"tiny/{file}" in caught.value.message
    assert "embedding-server models pull tiny" in caught.value.message


def test_every_missing_file_is_named_at_once(card: Card) -> None:
    for file in FILES:
        card.path(file).unlink()
    assert missing_files(card) == [f"tiny/{file}" for file in FILES]
    with pytest.raises(ModelFileError) as caught:
        check_present(card)
    assert [file for file in FILES if f"tiny/{file}" not in caught.value.message] == []


@pytest.mark.parametrize("file", FILES)
def test_one_changed_bit_is_found_and_the_file_is_named(card: Card, file: str) -> None:
    spoil(card.path(file))
    assert missing_files(card) == []  # a look at the size alone cannot tell
    with pytest.raises(ModelFileError) as caught:
        check_files(card)
    message = caught.value.message
    assert str(card.path(file)) in message
    assert card.files[file].sha256 in message
    assert "embedding-server models pull tiny" in message


def test_a_file_that_is_absent_when_it_is_hashed_is_named(card: Card) -> None:
    card.path("graph.onnx").unlink()
    with pytest.raises(ModelFileError) as caught:
        check_files(card)
    assert caught.value.message.startswith(
        f"model tiny: {card.path('graph.onnx')}: No such file or directory; "
    )


def test_every_wrong_file_is_named_at_once_and_the_right_ones_are_not(card: Card) -> None:
    spoil(card.path("graph.onnx"))
    card.path("tokenizer.json").write_bytes(b"cut")
    with pytest.raises(ModelFileError) as caught:
        check_files(card)
    message = caught.value.message
    assert f"{card.path('graph.onnx')} has sha256" in message
    assert f"{card.path('tokenizer.json')} has 3 bytes, but the card says 11" in message
    assert "model.safetensors" not in message


def test_what_is_no_regular_file_is_not_waited_for(card: Card) -> None:
    card.path("graph.onnx").unlink()
    os.mkfifo(card.path("graph.onnx"))
    found = differences(card.folder, card.files)
    assert found == {"graph.onnx": f"{card.path('graph.onnx')} is no regular file"}


def test_the_bytes_that_were_read_are_reported_as_they_are_read(tmp_path: Path) -> None:
    files = {"graph.onnx": bytes(1_000_000), "empty": b""}
    card = read_card(write_model(tmp_path, card_table(files=pins(files)), files), tmp_path)
    steps: list[int] = []
    assert differences(card.folder, card.files, steps.append) == {}
    assert sum(steps) == 1_000_000
    assert len(steps) > 1


def test_a_variant_misses_its_bases_files_too(card: Card, variant: Card) -> None:
    card.path("graph.onnx").unlink()
    variant.path("rotation.safetensors").unlink()
    assert missing_files(variant) == ["tiny/graph.onnx", "variant/rotation.safetensors"]
    with pytest.raises(ModelFileError, match="models pull variant"):
        check_present(variant)


def test_hashing_a_variant_reads_its_own_files_only(card: Card, variant: Card) -> None:
    spoil(card.path("graph.onnx"))
    check_files(variant)
    spoil(variant.path("rotation.safetensors"))
    with pytest.raises(ModelFileError, match=r"rotation\.safetensors"):
        check_files(variant)
