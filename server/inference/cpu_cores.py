"""How many physical cores this process may use.

Two hardware threads of one core share its arithmetic units, so a matrix product gains nothing
from the second; containers limit a process by affinity or by a cgroup quota.
"""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores(sysfs: Path = Path("/sys")) -> int:
    """Physical cores within the process's affinity and cgroup quota; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    else:  # macOS, Windows
        cpus = set(range(os.cpu_count() or 1))
    cores = len({_siblings(sysfs, cpu) for cpu in cpus})
    quota = _cgroup_quota(sysfs)
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def _siblings(sysfs: Path, cpu: int) -> str:
    """A text that is equal for the hardware threads of one core."""
    path = sysfs / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _cgroup_quota(sysfs: Path) -> float | None:
    """CPUs' worth of time that the cgroup (v2, else v1) allows, None if unlimited."""
    try:
        limit, period = (sysfs / "fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = sysfs / "fs/cgroup/cpu"
        limit_us = int((folder / "cpu.cfs_quota_us").read_text())
        return limit_us / int((folder / "cpu.cfs_period_us").read_text()) if limit_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
