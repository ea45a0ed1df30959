"""A data folder that cannot be used: one line, whatever the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import PATIENCE_S, Outcome, assert_mistake, run, user_environment

COMMANDS = {
    "serve": ("serve", "--port", "0"),
    "doctor": ("doctor",),
    "embed": ("embed", "absent.txt"),
    "models list": ("models", "list"),
    "bundle create": ("bundle", "create", "all-MiniLM-L6-v2", "--output", "absent/a.bundle"),
    "keys create": ("keys", "create", "--name", "a"),
    "usage": ("usage",),
}
# Root looks into every folder, unless it is taken from it.
LIKE_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
OTHER_USER = 65534


@pytest.fixture
def home_of_another(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    home.mkdir()
    if os.getuid() == 0:
        os.chown(home, OTHER_USER, OTHER_USER)
    home.chmod(0o700 if os.getuid() == 0 else 0)
    yield home
    home.chmod(0o700)


@pytest.mark.parametrize("command", ["serve", "embed", "models list", "keys create"])
def test_the_home_of_another_user_is_named(command: str, home_of_another: Path) -> None:
    outcome = subprocess.run(
        [
            *(LIKE_OTHERS if os.getuid() == 0 else []),
            *(sys.executable, "-m", "server", *COMMANDS[command]),
        ],
        env=user_environment({"HOME": str(home_of_another), "XDG_DATA_HOME": ""}),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert_mistake(
        Outcome(outcome.returncode, outcome.stdout, outcome.stderr),
        f"data_dir {home_of_another}",
        "Permission denied",
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_place_of_the_folder_is_named(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run(*COMMANDS[command], "--data-dir", tmp_path / "file")
    assert_mistake(outcome, f"data_dir {tmp_path / 'file'} is not a folder")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "keys create"])
def test_a_link_to_nothing_is_named(command: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    outcome = run(*COMMANDS[command], "--data-dir", tmp_path / "link")
    assert_mistake(outcome, f"data_dir {tmp_path / 'link'} is a link to nothing")


def test_a_disk_that_cannot_be_written_to_is_named() -> None:
    outcome = run("keys", "create", "--name", "a", "--data-dir", "/sys/embedding-server")
    assert_mistake(outcome, "data_dir /sys/embedding-server")
