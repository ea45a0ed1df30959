"""What killed and failed pulls, imports and installations have left, and the command that clears it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.filesize import decimal
from typer.testing import CliRunner

from server.catalog.leftovers import clear_leftovers
from server.catalog.locking import hold, scratch_folder
from server.catalog.placing import workshop
from server.cli import app
from server.errors import ModelFileError
from tests.catalog import card_table, write_model


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    write_model(tmp_path / "shipped", card_table())
    return tmp_path / "shipped"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_model(tmp_path / "data" / "models", card_table("org/other"))
    return tmp_path / "data"


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def leave(shipped: Path, data: Path) -> list[Path]:
    """What is left by a killed import, two killed pulls and one that failed."""
    left = [
        data / "models" / ".new-0123abcd",
        shipped / "tiny" / ".pull-0123abcd",
        data / "models" / "org" / "other" / ".pull-0123abcd",
        data / "downloads" / f"org--model--{'c' * 40}",
    ]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(os.urandom(100_000))
    return left


def test_everything_that_nobody_uses_goes_and_the_command_says_how_much_that_freed(
    shipped: Path, data: Path
) -> None:
    before = names(shipped), names(data) | {"downloads"}
    left = leave(shipped, data)
    on_disk = 512 * sum((folder / "weights").stat().st_blocks for folder in left)
    (data / "models" / "empty").mkdir()
    folders = ["--models-dir", str(shipped), "--data-dir", str(data)]
    outcome = CliRunner().invoke(app, ["models", "clean", *folders], catch_exceptions=False)
    *removed, last = outcome.stdout.splitlines()
    told = [line.partition(": removed, ")[0] for line in removed]
    assert told == [str(folder) for folder in (*left, data / "models" / "empty")]
    assert on_disk
    assert last == f"freed {decimal(on_disk)}"
    assert (names(shipped), names(data)) == before


def test_a_second_time_there_is_nothing_to_clear(shipped: Path, data: Path) -> None:
    folders = ["--models-dir", str(shipped), "--data-dir", str(data)]
    outcome = CliRunner().invoke(app, ["models", "clean", *folders], catch_exceptions=False)
    assert outcome.stdout == "freed 0 bytes\n"


def test_what_running_ones_use_is_told_and_left_alone(shipped: Path, data: Path) -> None:
    download = data / "downloads" / f"org--model--{'c' * 40}"
    lock = hold(download)
    assert lock is not None
    (data / "models" / "empty").mkdir()  # perhaps the running import has just made it
    with (
        lock,
        scratch_folder(shipped / "tiny", ".pull-") as pulled,
        workshop(data / "models") as shop,
    ):
        shop.new.joinpath("weights").touch()
        before = names(shipped), names(data)
        found = dict(clear_leftovers(shipped, data / "models", data / "downloads"))
        assert found == dict.fromkeys((shop.new.parent, pulled, download))
        assert (names(shipped), names(data)) == before
        folders = ["--models-dir", str(shipped), "--data-dir", str(data)]
        outcome = CliRunner().invoke(app, ["models", "clean", *folders], catch_exceptions=False)
        assert f"{download}: in use, left alone\n" in outcome.stdout
        assert outcome.stdout.endswith("\nfreed 0 bytes\n")


def test_what_cannot_be_removed_is_named(shipped: Path, data: Path) -> None:
    path = data / "downloads" / "file"
    path.parent.mkdir()
    path.touch()
    with pytest.raises(ModelFileError, match=f"cannot clear {path}: Not a directory"):
        list(clear_leftovers(shipped, data / "models", data / "downloads"))
