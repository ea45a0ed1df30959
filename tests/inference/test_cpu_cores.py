from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.inference.cpu_cores import usable_cores


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight hardware threads, whatever machine the test runs on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_siblings(sysfs: Path, siblings: dict[int, str]) -> None:
    for cpu, listed in siblings.items():
        folder = sysfs / f"devices/system/cpu/cpu{cpu}/topology"
        write(folder / "thread_siblings_list", listed + "\n")


@pytest.mark.usefixtures("eight_cpus")
class TestTopology:
    def test_two_hardware_threads_of_a_core_count_once(self, tmp_path: Path) -> None:
        write_siblings(tmp_path, {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
        assert usable_cores(tmp_path) == 4

    def test_cores_without_hyperthreading_count_each(self, tmp_path: Path) -> None:
        write_siblings(tmp_path, {cpu: str(cpu) for cpu in range(8)})
        assert usable_cores(tmp_path) == 8

    def test_without_topology_every_cpu_counts_as_a_core(self, tmp_path: Path) -> None:
        assert usable_cores(tmp_path) == 8

    def test_a_core_counts_when_only_one_of_its_threads_may_be_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_siblings(tmp_path, {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)})
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4}, raising=False)
        assert usable_cores(tmp_path) == 2

    def test_without_affinity_the_machines_cpus_count(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
        monkeypatch.setattr(os, "cpu_count", lambda: 6)
        assert usable_cores(tmp_path) == 6


@pytest.mark.usefixtures("eight_cpus")
class TestQuota:
    @pytest.mark.parametrize(
        ("cpu_max", "cores"),
        [
            ("max 100000", 8),
            ("200000 100000", 2),
            ("150000 100000", 2),
            ("50000 100000", 1),
            ("1000 100000", 1),
            ("50000 25000", 2),
            ("6400000 100000", 8),
        ],
    )
    def test_a_version_2_quota_limits_the_cores_rounded_up(
        self, tmp_path: Path, cpu_max: str, cores: int
    ) -> None:
        write(tmp_path / "fs/cgroup/cpu.max", cpu_max + "\n")
        assert usable_cores(tmp_path) == cores

    @pytest.mark.parametrize(
        ("quota", "period", "cores"),
        [
            ("-1", "100000", 8),
            ("200000", "100000", 2),
            ("250000", "100000", 3),
            ("10000", "100000", 1),
            ("6400000", "100000", 8),
            ("200000", "0", 8),
        ],
    )
    def test_a_version_1_quota_limits_the_cores_rounded_up(
        self, tmp_path: Path, quota: str, period: str, cores: int
    ) -> None:
        write(tmp_path / "fs/cgroup/cpu/cpu.cfs_quota_us", quota + "\n")
        write(tmp_path / "fs/cgroup/cpu/cpu.cfs_period_us", period + "\n")
        assert usable_cores(tmp_path) == cores

    @pytest.mark.parametrize("cpu_max", ["", "nonsense", "a b", "200000"])
    def test_a_version_2_file_that_cannot_be_read_leaves_version_1_to_decide(
        self, tmp_path: Path, cpu_max: str
    ) -> None:
        write(tmp_path / "fs/cgroup/cpu.max", cpu_max)
        write(tmp_path / "fs/cgroup/cpu/cpu.cfs_quota_us", "300000")
        write(tmp_path / "fs/cgroup/cpu/cpu.cfs_period_us", "100000")
        assert usable_cores(tmp_path) == 3

    def test_topology_and_quota_the_smaller_one_counts(self, tmp_path: Path) -> None:
        write_siblings(tmp_path, {cpu: f"{cpu % 2}" for cpu in range(8)})
        write(tmp_path / "fs/cgroup/cpu.max", "400000 100000")
        assert usable_cores(tmp_path) == 2


def test_a_process_bound_to_one_cpu_uses_one_core() -> None:
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from server.inference.cpu_cores import usable_cores
print(usable_cores())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"


def test_on_this_machine_there_is_at_least_one_core_and_no_more_than_the_process_may_use() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
