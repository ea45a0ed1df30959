"""What a wheel says of itself: its needs, its licence and the texts of it. Installs nothing.

A wheel is read as a zip archive; nothing of it is run. Any thread may call this.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.errors import BundleError, unusable

OWN_LICENCE = "Apache-2.0"  # of this software, as its own metadata has it
# Names of files that hold terms, of any suffix but those of programs: `LICENSE-MIT`, `COPYING.LIB`.
LICENCE_FILE = re.compile(
    r"(un)?(licen[cs]es?|copying|copyright|notices?|third[-_ ]?party[-_ ]?(notices?|licen[cs]es?))"
    r"([-_.].*)?",
    re.IGNORECASE,
)
_PROGRAMS = (".py", ".pyc", ".pyi", ".so", ".h", ".js")
_MOST_SAID = 100  # characters: some write the whole text where the licence's name belongs


@dataclass(frozen=True, slots=True, eq=False)
class WheelMetadata:
    """One wheel; `name` is the canonical one of its distribution.

    `licence` is what its metadata says, an SPDX expression at best, None if they say nothing.
    `licence_texts` are by their paths in the wheel, which also names the SBOMs it brings itself.
    """

    file: str
    name: str
    version: str
    licence: str | None
    requirements: tuple[Requirement, ...]
    licence_texts: dict[str, str]
    sboms: tuple[str, ...]


def read_wheel(path: Path) -> WheelMetadata:
    """Read a wheel's metadata and licence texts.

    Raises:
        BundleError: it cannot be read as a wheel.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(info.filename for info in archive.infolist() if not info.is_dir())
            said = distribution_in(path)
            return WheelMetadata(
                file=path.name,
                name=canonicalize_name(said.name),
                version=said.version,
                licence=_licence(said),
                requirements=tuple(map(Requirement, said.requires or ())),
                licence_texts={
                    member: _decoded(archive.read(member))
                    for member in members
                    if _holds_terms(member)
                },
                sboms=tuple(member for member in members if ".dist-info/sboms/" in member),
            )
    except OSError as error:
        raise BundleError(unusable(f"wheel {path}", error)) from error
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"{path} cannot be read as a wheel: {error}") from error


def distribution_in(wheel: Path) -> Distribution:
    """What a wheel says of itself, as importlib would read it.

    Raises:
        KeyError: it holds no metadata, or more than one distribution's.
        zipfile.BadZipFile: it is no zip archive.
    """
    folders = {
        part.name for part in zipfile.Path(wheel).iterdir() if part.name.endswith(".dist-info")
    }
    if len(folders) != 1:
        raise KeyError(f"it has {len(folders)} folders *.dist-info")
    found = PathDistribution(zipfile.Path(wheel, f"{folders.pop()}/"))
    if not _field(found, "Name") or not _field(found, "Version"):
        raise KeyError("its METADATA has no name and version")
    return found


def _holds_terms(member: str) -> bool:
    folder, _, name = member.rpartition("/")
    if f"{folder}/".partition(".dist-info/")[2].startswith("licenses/"):  # of PEP 639
        return True
    return LICENCE_FILE.fullmatch(name) is not None and not name.lower().endswith(_PROGRAMS)


def _field(said: Distribution, name: str) -> str:
    """Empty if the metadata do not have it; Python 3.12 and newer warn of asking for such a one."""
    found: list[str] = said.metadata.get_all(name) or [""]
    return found[0]


def _licence(said: Distribution) -> str | None:
    if expression := _field(said, "License-Expression"):
        return expression
    first = _field(said, "License").strip().partition("\n")[0].strip()
    if 0 < len(first) <= _MOST_SAID and first.upper() != "UNKNOWN":
        return first
    classified = [line.split(" :: ") for line in said.metadata.get_all("Classifier") or []]
    names = [parts[-1] for parts in classified if parts[0] == "License" and len(parts) > 1]
    return "; ".join(names) or None


def _decoded(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
