from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from server.program.usable_memory import usable_memory_bytes

GIB = 1024**3
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"


@pytest.fixture(autouse=True)
def eight_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PHYS_PAGES": 8 * GIB // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def write_process(root: Path, cgroups: str, mounts: str) -> None:
    write(root / "proc/self/cgroup", cgroups)
    write(root / "proc/self/mountinfo", mounts)


def test_on_this_machine_it_is_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 0 < (usable_memory_bytes() or 0) <= psutil.virtual_memory().total


def test_without_limits_it_is_the_machines(tmp_path: Path) -> None:
    assert usable_memory_bytes(tmp_path) == 8 * GIB
    write_process(tmp_path, "0::/", V2)
    write(tmp_path / "sys/fs/cgroup/memory.max", "max")
    assert usable_memory_bytes(tmp_path) == 8 * GIB


@pytest.mark.parametrize("file", ["memory.max", "memory.high"])
def test_the_least_of_a_cgroup_and_those_above_it_counts(tmp_path: Path, file: str) -> None:
    write_process(tmp_path, "0::/a/b", V2)
    write(tmp_path / "sys/fs/cgroup/a/b" / file, str(2 * GIB))
    assert usable_memory_bytes(tmp_path) == 2 * GIB
    write(tmp_path / "sys/fs/cgroup/a/memory.max", str(GIB))
    assert usable_memory_bytes(tmp_path) == GIB
    write(tmp_path / "sys/fs/cgroup/memory.max", str(9 * GIB))
    assert usable_memory_bytes(tmp_path) == GIB


def test_version_1_counts_as_well(tmp_path: Path) -> None:
    write_process(tmp_path, "4:cpu:/c\n3:memory:/a", V1)
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert usable_memory_bytes(tmp_path) == 8 * GIB
    write(tmp_path / "sys/fs/cgroup/memory/a/memory.limit_in_bytes", str(512 * 1024**2))
    assert usable_memory_bytes(tmp_path) == 512 * 1024**2


def test_a_system_that_does_not_tell_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert usable_memory_bytes(tmp_path) is None
