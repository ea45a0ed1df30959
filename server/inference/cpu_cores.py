"""How many physical cores this process may use.

Two hardware threads of one core share its arithmetic units, so a matrix product gains nothing
from the second; containers and service managers limit a process by affinity or by a cgroup quota.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from server.program.cgroups import cgroup_folders


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores within the process's affinity and cgroup quota; at least 1.

    Args:
        root: where `proc` and `sys` are.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    else:  # macOS, Windows
        cpus = set(range(os.cpu_count() or 1))
    cores = len({_siblings(root, cpu) for cpu in cpus})
    quotas = [quota for folder in cgroup_folders("cpu", root) for quota in _quotas(folder)]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def _siblings(root: Path, cpu: int) -> str:
    """A text that is equal for the hardware threads of one core."""
    path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _quotas(folder: Path) -> Iterator[float]:
    """CPUs' worth of time that one cgroup allows, by the files of version 2 or 1, if it limits."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        yield int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        pass
    try:
        limit_us = int((folder / "cpu.cfs_quota_us").read_text())
        if limit_us > 0:
            yield limit_us / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        pass
