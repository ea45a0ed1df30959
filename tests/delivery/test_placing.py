from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.delivery.placing import clear_workshop, workshop, workshops


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


def write(folder: Path, content: bytes) -> None:
    (folder / "1_Dense").mkdir(parents=True)
    (folder / "card.toml").write_bytes(content)
    (folder / "1_Dense" / "model.safetensors").write_bytes(content)


def place(models: Path, name: str, content: bytes = b"new") -> None:
    with workshop(models) as shop:
        write(shop.new / name, content)
        shop.put_in_place([name])


@pytest.mark.parametrize("name", ["tiny", "org/tiny"])
def test_a_model_is_on_the_disk_before_it_appears_and_its_name_afterwards(
    models: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before: set[tuple[int, int]] = set()
    after: set[tuple[int, int]] = set()
    real = os.fsync

    def recorded(opened: int) -> None:
        status = os.fstat(opened)
        synced = after if (models / name).exists() else before
        synced.add((status.st_dev, status.st_ino))
        real(opened)

    monkeypatch.setattr(os, "fsync", recorded)
    place(models, name)

    def identity(path: Path) -> tuple[int, int]:
        return path.stat().st_dev, path.stat().st_ino

    everything = [models / name, *(models / name).rglob("*")]
    assert len(everything) == 4
    assert [path for path in everything if identity(path) not in before] == []
    for folder in (models.parent, models, (models / name).parent):
        assert identity(folder) in after
    assert list(models.glob(".*")) == []


def test_an_organisation_has_no_folder_before_its_model_has(models: Path) -> None:
    with workshop(models) as shop:
        write(shop.new / "org" / "tiny", b"new")
        assert list(models.glob("[!.]*")) == []
    assert list(models.iterdir()) == []


def test_an_organisations_folder_that_stays_empty_is_removed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, target: Path) -> Path:
        assert target.parent.is_dir()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        place(models, "org/tiny")
    assert list(models.iterdir()) == []


def test_of_two_at_once_neither_clears_what_the_other_makes(models: Path) -> None:
    with workshop(models) as slow:
        write(slow.new / "slow", b"slow")
        place(models, "fast")
        (held,) = workshops(models)
        assert clear_workshop(held) is None
        slow.put_in_place(["slow"])
    names = sorted(path.name for path in models.iterdir())
    assert names == ["fast", "slow"]
    assert (models / "slow" / "1_Dense" / "model.safetensors").read_bytes() == b"slow"


def test_the_next_one_clears_what_a_killed_one_has_left(models: Path) -> None:
    write(models / ".new-0123abcd" / "new" / "org" / "half", b"half")
    (models / ".new-0123abcd" / ".lock").touch()
    place(models, "tiny")
    assert [path.name for path in models.iterdir()] == ["tiny"]


def test_a_leftover_that_cannot_be_cleared_does_not_keep_others_from_their_place(
    models: Path,
) -> None:
    models.mkdir(parents=True)
    (models / ".new-0123abcd").write_bytes(b"no folder")
    place(models, "tiny")
    assert (models / "tiny" / "card.toml").read_bytes() == b"new"


def test_a_model_that_a_killed_one_has_taken_away_comes_back(models: Path) -> None:
    write(models / ".new-0123abcd" / "old" / "org" / "tiny", b"old")
    (models / ".new-0123abcd" / ".lock").touch()
    place(models, "other")
    assert (models / "org" / "tiny" / "card.toml").read_bytes() == b"old"
    assert list(models.glob(".*")) == []


def test_another_one_is_replaced_as_a_whole(models: Path) -> None:
    place(models, "tiny", b"old")
    (models / "tiny" / "more").touch()
    place(models, "tiny")
    assert (models / "tiny" / "card.toml").read_bytes() == b"new"
    assert not (models / "tiny" / "more").exists()
