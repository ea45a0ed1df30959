"""What killed and failed pulls, imports and installations have left, and the command that clears it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.filesize import decimal
from typer.testing import CliRunner

from server.commands.cli import app
from server.delivery.leftovers import Leftover, clear_leftovers
from server.delivery.locking import hold, scratch_folder
from server.delivery.placing import workshop
from tests.catalog import card_table, write_model
from tests.command_line import run


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
        lock = hold(folder)
        assert lock is not None
        lock.close()
        (folder / "weights").write_bytes(os.urandom(100_000))
    return left


def test_everything_that_nobody_uses_goes_and_the_command_says_how_much_that_freed(
    shipped: Path, data: Path
) -> None:
    before = names(shipped), names(data) | {"downloads"}
    left = leave(shipped, data)
    on_disk = 512 * sum((folder / "weights").stat().st_blocks for folder in left)
    folders = ["--models-dir", str(shipped), "--data-dir", str(data)]
    outcome = CliRunner().invoke(app, ["models", "clean", *folders], catch_exceptions=False)
    *removed, last = outcome.stdout.splitlines()
    told = [line.partition(": removed, ")[0] for line in removed]
    assert told == [str(folder) for folder in left]
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
    with (
        lock,
        scratch_folder(shipped / "tiny", ".pull-") as pulled,
        workshop(data / "models") as shop,
    ):
        shop.new.joinpath("weights").touch()
        before = names(shipped), names(data)
        found = list(clear_leftovers((shipped, data / "models"), data / "downloads"))
        assert found == [Leftover(left, None) for left in (shop.new.parent, pulled, download)]
        assert (names(shipped), names(data)) == before
        folders = ["--models-dir", str(shipped), "--data-dir", str(data)]
        outcome = CliRunner().invoke(app, ["models", "clean", *folders], catch_exceptions=False)
        assert f"{download}: in use, left alone\n" in outcome.stdout
        assert outcome.stdout.endswith("\nfreed 0 bytes\n")


DOWNLOAD = f"org--model--{'c' * 40}"


@pytest.mark.parametrize(
    "place",
    [
        "downloads/thesis",
        "downloads/org--model",
        f"downloads/{DOWNLOAD}",
        "models/.new-0123abcd",
        "models/org/other/.pull-0123abcd",
        "models/org/.pull-0123abcd",
    ],
)
def test_a_folder_of_a_stranger_stays_as_it_is(shipped: Path, data: Path, place: str) -> None:
    (data / place / "notes").mkdir(parents=True)
    (data / place / "chapter1.tex").touch()
    (data / place / "notes" / ".lock").touch()
    before = names(data)
    assert list(clear_leftovers((shipped, data / "models"), data / "downloads")) == []
    assert names(data) == before


@pytest.mark.parametrize("name", ["thesis", "org--model", DOWNLOAD[:-1], f"{DOWNLOAD}-mine"])
def test_a_folder_of_another_name_among_the_downloads_stays_even_with_a_lock(
    data: Path, name: str
) -> None:
    folder = data / "downloads" / name
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    assert list(clear_leftovers([data / "models"], data / "downloads")) == []
    assert (folder / ".lock").exists()


@pytest.mark.parametrize(
    "place",
    [f"downloads/{DOWNLOAD}", "models/.new-0123abcd", "models/org/other/.pull-0123abcd"],
)
@pytest.mark.parametrize("locked", [False, True])
def test_a_link_to_a_folder_elsewhere_stays_and_the_folder_too(
    shipped: Path, data: Path, tmp_path: Path, place: str, locked: bool
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "sea.jpg").touch()
    if locked:
        (photos / ".lock").touch()
    (data / place).parent.mkdir(exist_ok=True)
    (data / place).symlink_to(photos)
    before = names(tmp_path)
    assert list(clear_leftovers((shipped, data / "models"), data / "downloads")) == []
    assert names(tmp_path) == before


def test_an_empty_folder_among_the_models_stays(shipped: Path, data: Path) -> None:
    (data / "models" / "mine").mkdir()
    assert list(clear_leftovers((shipped, data / "models"), data / "downloads")) == []
    assert (data / "models" / "mine").is_dir()


def test_files_among_the_folders_are_passed_over(shipped: Path, data: Path) -> None:
    left = leave(shipped, data)
    for name in (".DS_Store", f"a--b--{'d' * 40}", "zip"):
        (data / "downloads" / name).touch()
    (data / "models" / ".new-file").touch()
    outcome = run("models", "clean", "--models-dir", shipped, "--data-dir", data)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert [folder for folder in left if folder.exists()] == []
    assert (data / "downloads" / ".DS_Store").exists()


def test_what_cannot_be_cleared_is_told_at_the_end_and_keeps_nothing_else(
    shipped: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = leave(shipped, data)
    real = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.is_relative_to(first):
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    outcome = run("models", "clean", "--models-dir", shipped, "--data-dir", data)
    assert outcome.exit_code == 2
    assert outcome.stderr == f"embedding-server: cannot clear {first}: Permission denied\n"
    *removed, last = outcome.stdout.splitlines()
    assert [line.partition(": removed, ")[0] for line in removed] == list(map(str, others))
    assert last.startswith("freed ")
    assert [folder for folder in others if folder.exists()] == []


def test_downloads_that_cannot_be_listed_are_told(
    shipped: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = data / "downloads"
    downloads.mkdir()

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    assert list(clear_leftovers([shipped], downloads)) == [
        Leftover(downloads, None, "Permission denied")
    ]


def test_a_folder_that_is_named_twice_is_told_once(data: Path) -> None:
    lock = hold(data / "models" / ".new-0123abcd")
    assert lock is not None
    with lock:
        found = list(clear_leftovers([data / "models", data / "models"], None))
    assert found == [Leftover(data / "models" / ".new-0123abcd", None)]
