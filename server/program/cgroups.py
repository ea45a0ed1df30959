"""The control groups that may limit this process, of version 1 or 2, also inside a container.

Pure functions of files; any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cgroup_folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The process's own cgroups that may limit it, and all above them that can be seen.

    The limit of each holds. Versions 1 and 2 may be mounted side by side.

    Args:
        controller: of version 1, as `cpu` or `memory`; version 2 has all in one place.
        root: where `proc` and `sys` are.
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
        elif controller in controllers.split(","):
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
