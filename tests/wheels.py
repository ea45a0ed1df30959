"""Small wheels, made by hand, that the tests of bundles, SBOMs and licences share."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from server import __version__

LICENCE = {"licenses/LICENSE": b"Do as you like.\n"}


def write_wheel(
    folder: Path,
    name: str = "embedding_server",
    version: str = __version__,
    *,
    tag: str = "py3-none-any",
    metadata: Iterable[str] = ("License-Expression: MIT",),
    in_dist_info: Mapping[str, bytes] = LICENCE,
    members: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a wheel with these lines of metadata; the same arguments give the same bytes.

    Args:
        in_dist_info: files of its folder `.dist-info`, beside the metadata.
        members: other files.
    """
    path = folder / f"{name}-{version}-{tag}.whl"
    dist_info = f"{name}-{version}.dist-info"
    head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    content = {f"{dist_info}/METADATA": "\n".join([*head, *metadata, ""]).encode()}
    content |= {f"{dist_info}/{file}": text for file, text in in_dist_info.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (content | dict(members or {})).items():
            archive.writestr(zipfile.ZipInfo(file), text)
    return path
