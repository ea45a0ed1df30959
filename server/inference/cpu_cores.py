"""How many physical cores this process may use.

Two hardware threads of one core share its arithmetic units, so a matrix product gains nothing
from the second; containers and service managers limit a process by affinity or by a cgroup quota.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


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
    quotas = [quota for folder in _cgroup_folders(root) for quota in _quotas(folder)]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def _siblings(root: Path, cpu: int) -> str:
    """A text that is equal for the hardware threads of one core."""
    path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The process's own cgroups that may limit its CPUs, and all above them that can be seen.

    The quota of each holds. Versions 1 and 2 may be mounted side by side.
    """
    try:
        memberships, mounts = (
            (root / "proc/self" / name).read_text("utf-8", "surrogateescape").splitlines()
            for name in ("cgroup", "mountinfo")
        )
    except OSError:  # not Linux
        return
    own: dict[str, str] = {}  # by the file system's type
    for line in memberships:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            own["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            own["cgroup"] = path
    for line in mounts:
        fields, _, described = line.partition(" - ")
        kind = described.partition(" ")[0]
        if kind not in own:
            continue
        # Other controllers of version 1 have mounts of their own, without the files that count.
        mounted, place = map(_unescaped, fields.split(" ")[3:5])
        top = root / place.lstrip("/")
        below = _below(own[kind], mounted)
        yield from (top / part for part in (below, *below.parents))


def _below(path: str, mounted: str) -> PurePosixPath:
    """Where a cgroup lies below the one that is mounted; the mount itself where that is unknown.

    In a container the mount may begin at the process's own cgroup, or outside of what its
    namespace can name ("/..").
    """
    try:
        return PurePosixPath(path).relative_to(mounted)
    except ValueError:
        return PurePosixPath()


def _unescaped(field: str) -> str:
    """A path of mountinfo, where blanks and the like are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


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
