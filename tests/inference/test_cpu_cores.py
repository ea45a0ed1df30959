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


def write_siblings(root: Path, siblings: dict[int, str]) -> None:
    for cpu, listed in siblings.items():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        write(folder / "thread_siblings_list", listed + "\n")


# As systemd mounts them: version 2 alone, version 1 alone, both.
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpuset rw shared:9 - cgroup cgroup rw,cpuset\n"
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
)
HYBRID = V1 + V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
OTHERS = "23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n24 23 0:5 / /x rw - tmpfs  rw\n"


def write_process(root: Path, cgroups: str, mounts: str) -> None:
    """Which cgroups the process is in, and what is mounted."""
    write(root / "proc/self/cgroup", cgroups + "\n")
    write(root / "proc/self/mountinfo", OTHERS + mounts)


def write_v1(folder: Path, quota: str, period: str = "100000") -> None:
    write(folder / "cpu.cfs_quota_us", quota + "\n")
    write(folder / "cpu.cfs_period_us", period + "\n")


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
        write_process(tmp_path, "0::/", V2)
        write(tmp_path / "sys/fs/cgroup/cpu.max", cpu_max + "\n")
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
        write_process(tmp_path, "3:cpuset:/elsewhere\n2:cpu,cpuacct:/", V1)
        write_v1(tmp_path / "sys/fs/cgroup/cpu,cpuacct", quota, period)
        assert usable_cores(tmp_path) == cores

    @pytest.mark.parametrize("cpu_max", ["", "nonsense", "a b", "200000", "200000 0"])
    def test_a_version_2_file_that_cannot_be_read_leaves_version_1_to_decide(
        self, tmp_path: Path, cpu_max: str
    ) -> None:
        write_process(tmp_path, "2:cpu,cpuacct:/\n0::/", HYBRID)
        write(tmp_path / "sys/fs/cgroup/unified/cpu.max", cpu_max)
        write_v1(tmp_path / "sys/fs/cgroup/cpu,cpuacct", "300000")
        assert usable_cores(tmp_path) == 3

    @pytest.mark.parametrize("limited", ["", "system.slice", "system.slice/a.service"])
    def test_a_version_2_quota_holds_wherever_above_the_process_it_is_set(
        self, tmp_path: Path, limited: str
    ) -> None:
        write_process(tmp_path, "0::/system.slice/a.service", V2)
        folder = tmp_path / "sys/fs/cgroup"
        write(folder / "system.slice/a.service/cpu.max", "max 100000\n")
        write(folder / "system.slice/b.service/cpu.max", "100000 100000\n")  # another's
        write(folder / limited / "cpu.max", "300000 100000\n")
        assert usable_cores(tmp_path) == 3

    @pytest.mark.parametrize("limited", ["", "system.slice", "system.slice/a.service"])
    def test_a_version_1_quota_holds_wherever_above_the_process_it_is_set(
        self, tmp_path: Path, limited: str
    ) -> None:
        write_process(tmp_path, "3:cpuset:/\n2:cpu,cpuacct:/system.slice/a.service", V1)
        folder = tmp_path / "sys/fs/cgroup/cpu,cpuacct"
        write_v1(folder / "system.slice/a.service", "-1")
        write_v1(folder / limited, "300000")
        assert usable_cores(tmp_path) == 3

    def test_of_several_quotas_the_smallest_counts(self, tmp_path: Path) -> None:
        write_process(tmp_path, "0::/a/b", V2)
        for folder, quota in {"": 500_000, "a": 200_000, "a/b": 400_000}.items():
            write(tmp_path / "sys/fs/cgroup" / folder / "cpu.max", f"{quota} 100000")
        assert usable_cores(tmp_path) == 2

    @pytest.mark.parametrize(("v1", "v2", "cores"), [(3, 5, 3), (5, 3, 3)])
    def test_with_both_versions_both_count(
        self, tmp_path: Path, v1: int, v2: int, cores: int
    ) -> None:
        write_process(tmp_path, "2:cpu,cpuacct:/a\n1:name=systemd:/c\n0::/b", HYBRID)
        write_v1(tmp_path / "sys/fs/cgroup/cpu,cpuacct/a", f"{v1}00000")
        write(tmp_path / "sys/fs/cgroup/unified/b/cpu.max", f"{v2}00000 100000")
        assert usable_cores(tmp_path) == cores

    @pytest.mark.parametrize(
        ("cgroup", "mounted"),
        [
            ("/docker/abc", "/docker/abc"),  # the host's namespace, the container's mount
            ("/", "/"),  # a namespace of its own
            ("/", "/../.."),  # a namespace whose mount was made outside of it
            ("/../other", "/"),  # moved out of its namespace
        ],
    )
    def test_in_a_container_the_mounts_own_quota_counts(
        self, tmp_path: Path, cgroup: str, mounted: str
    ) -> None:
        mount = V2.replace(" / ", f" {mounted} ", 1)
        write_process(tmp_path, f"0::{cgroup}", mount)
        write(tmp_path / "sys/fs/cgroup/cpu.max", "300000 100000")
        assert usable_cores(tmp_path) == 3

    def test_a_cgroup_below_the_mounted_one_is_found_there(self, tmp_path: Path) -> None:
        write_process(tmp_path, "0::/docker/abc/inner", V2.replace(" / ", " /docker/abc ", 1))
        write(tmp_path / "sys/fs/cgroup/inner/cpu.max", "300000 100000")
        assert usable_cores(tmp_path) == 3

    def test_a_mount_may_lie_anywhere(self, tmp_path: Path) -> None:
        mount = V2.replace("/sys/fs/cgroup ", "/my\\040mounts/\u00fc ")
        write_process(tmp_path, "0::/a", mount)
        write(tmp_path / "my mounts/\u00fc/a/cpu.max", "300000 100000")
        assert usable_cores(tmp_path) == 3

    def test_a_cgroup_that_cannot_be_seen_leaves_those_above_it(self, tmp_path: Path) -> None:
        write_process(tmp_path, "0::/a/gone", V2)
        write(tmp_path / "sys/fs/cgroup/a/cpu.max", "300000 100000")
        assert usable_cores(tmp_path) == 3

    @pytest.mark.parametrize("content", [b"", b"\n\n", b"nonsense\n", b"0::/\xff\n"])
    def test_what_the_kernel_tells_in_another_form_is_no_quota(
        self, tmp_path: Path, content: bytes
    ) -> None:
        write_process(tmp_path, "0::/", V2)
        for name in ("cgroup", "mountinfo"):
            (tmp_path / "proc/self" / name).write_bytes(content)
        assert usable_cores(tmp_path) == 8

    def test_topology_and_quota_the_smaller_one_counts(self, tmp_path: Path) -> None:
        write_siblings(tmp_path, {cpu: f"{cpu % 2}" for cpu in range(8)})
        write_process(tmp_path, "0::/", V2)
        write(tmp_path / "sys/fs/cgroup/cpu.max", "400000 100000")
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
