from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.delivery import locking
from server.delivery.locking import clear, hold, scratch_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from server.delivery.locking import scratch_folder

with scratch_folder(Path(sys.argv[1]), ".new-") as folder:
    (folder / "weights").write_bytes(os.urandom(100_000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def let_go(folder: Path) -> None:
    """Make a folder as one that a killed process has held."""
    lock = hold(folder)
    assert lock is not None
    lock.close()


def test_what_a_killed_process_held_is_cleared_and_counted(tmp_path: Path) -> None:
    outcome = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert outcome.returncode == -9
    (left,) = tmp_path.iterdir()
    on_disk = 512 * (left / "weights").stat().st_blocks
    assert on_disk
    assert clear(left) == on_disk
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_is_left_alone_until_it_is_let_go(tmp_path: Path) -> None:
    folder = tmp_path / "held"
    lock = hold(folder)
    assert lock is not None
    with lock:
        (folder / "weights").write_bytes(b"some weights")
        assert clear(folder) is None
        assert hold(folder) is None
        assert (folder / "weights").read_bytes() == b"some weights"
    assert clear(folder) is not None
    assert not folder.exists()
    assert clear(folder) == 0


def test_a_file_that_has_another_name_elsewhere_frees_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(bytes(100_000))
    folder = tmp_path / "left"
    let_go(folder)
    (folder / "weights").hardlink_to(tmp_path / "kept")
    assert clear(folder) == 0
    assert not folder.exists()


def test_a_link_to_a_folder_is_removed_and_not_the_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    folder = tmp_path / "left"
    let_go(folder)
    (folder / "link").symlink_to(tmp_path / "precious")
    clear(folder)
    assert list(tmp_path.iterdir()) == [tmp_path / "precious"]


def test_a_folder_that_is_cleared_while_it_is_taken_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "taken"
    real, calls = locking.try_lock, 0

    def late(file: object) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:  # one who clears gets the lock first
            assert clear(folder) is not None
        return real(file)  # type: ignore[arg-type]

    monkeypatch.setattr(locking, "try_lock", late)
    lock = hold(folder)
    assert lock is not None
    with lock:
        assert clear(folder) is None
        assert folder.is_dir()


def test_a_scratch_folder_stays_when_what_belongs_elsewhere_cannot_be_brought_there(
    tmp_path: Path,
) -> None:
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"), scratch_folder(tmp_path, ".new-", fail):
        pass
    (left,) = tmp_path.iterdir()
    with pytest.raises(OSError, match="Input/output"):
        clear(left, fail)
    assert left.is_dir()


def test_a_folder_that_nobody_has_held_is_left_alone_and_gets_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "thesis").touch()
    assert clear(folder) == 0
    assert list(folder.iterdir()) == [folder / "thesis"]


def test_a_link_to_a_folder_that_was_held_is_left_alone(tmp_path: Path) -> None:
    let_go(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert clear(tmp_path / "link") == 0
    assert (tmp_path / "real" / ".lock").exists()


def test_a_folder_whose_lock_is_a_link_is_left_alone(tmp_path: Path) -> None:
    let_go(tmp_path / "real")
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / ".lock").symlink_to(tmp_path / "real" / ".lock")
    assert clear(folder) == 0
    assert (folder / ".lock").is_symlink()
