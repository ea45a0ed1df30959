"""The wheels that this software is installed from where there is no package index.

Knows nothing of bundles or models, but for those that are part of the software's own wheel.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import (
    InvalidWheelFilename,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import Version

import server
from server.catalog.registry import read_registry
from server.delivery.pip import run_pip
from server.delivery.wheel_metadata import distribution_in
from server.errors import BundleError, PipError, unusable
from server.program.command_lines import CHECKOUT, DISTRIBUTION, is_checkout


def collect_wheels(folder: Path, extras: Iterable[str] = ()) -> list[Path]:
    """Have pip put the wheels of the software and all that it needs into a folder.

    The software's own is built if this is a source checkout, else fetched; the others are fetched at
    the versions that are installed in this environment, so that what is carried away was used here.

    Args:
        folder: an empty folder for the wheels and what is needed to build one.
        extras: of the software, whose needs come along.

    Raises:
        BundleError: pip is absent or failed, the software has no such extra, or something it needs
            is not installed here as it needs it.
    """
    own = f"{DISTRIBUTION}=={server.__version__}"
    if is_checkout():
        own = str(_copy_of_checkout(folder / "source"))
    wheels = folder / "wheels"
    try:
        run_pip("wheel", "--no-deps", "--wheel-dir", str(wheels), own)
        # What is installed may be an older state of a checkout; the wheel knows what it needs.
        pins = installed_pins(distribution_in(next(wheels.iterdir())), extras)
        run_pip("wheel", "--no-deps", "--wheel-dir", str(wheels), *pins)
    except PipError as error:
        raise BundleError(
            f"cannot collect the wheels: {error.message}; --wheels-from takes a folder of wheels "
            "made in another way"
        ) from error
    return wheels_in(wheels)


def installed_pins(of: Distribution, extras: Iterable[str] = ()) -> list[str]:
    """All that a distribution needs, and what that needs, as `name==version` installed here.

    Raises:
        BundleError: it has no such extra, or something is not installed here as it is needed.
    """
    unknown = set(extras) - set(of.metadata.get_all("Provides-Extra") or [])
    if unknown:
        raise BundleError(f"{of.name} has no extra {min(unknown)}")
    pins: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(of, frozenset(extras))]
    while waiting:
        needing, wanted = waiting.pop()
        for requirement in map(Requirement, needing.requires or []):
            if not _applies(requirement, wanted):
                continue
            found = _installed(requirement, needing.name)
            name = canonicalize_name(requirement.name)
            pins[name] = f"{name}=={found.version}"
            step = (name, frozenset(requirement.extras))
            if step not in seen:
                seen.add(step)
                waiting.append((found, step[1]))
    return sorted(pins.values())


def wheels_in(folder: Path) -> list[Path]:
    """The wheels in a folder, sorted; the software's own must be among them in this version.

    Raises:
        BundleError: there is no such folder, or something else is in it.
    """
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise BundleError(unusable(f"wheels folder {folder}", error)) from error
    found: set[tuple[str, Version]] = set()
    for file in files:
        try:
            name, version, _, _ = parse_wheel_filename(file.name)
        except InvalidWheelFilename:
            raise BundleError(f"wheels folder {folder}: {file.name} is no wheel") from None
        found.add((name, version))
    if (canonicalize_name(DISTRIBUTION), Version(server.__version__)) not in found:
        raise BundleError(
            f"wheels folder {folder}: holds no wheel of {DISTRIBUTION} {server.__version__}"
        )
    return files


def _applies(requirement: Requirement, extras: Collection[str]) -> bool:
    """Whether a requirement counts on this platform and with these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _installed(requirement: Requirement, needing: str) -> Distribution:
    try:
        found = distribution(requirement.name)
    except PackageNotFoundError:
        raise BundleError(
            f"{requirement.name}, which {needing} needs, is not installed here"
        ) from None
    if not requirement.specifier.contains(found.version, prereleases=True):
        raise BundleError(
            f"{found.name} {found.version} is installed here, but {needing} needs {requirement}"
        )
    return found


def _copy_of_checkout(folder: Path) -> Path:
    """What the software's wheel is made of, without the files that `models pull` fetches."""
    registry = read_registry(CHECKOUT / "models")
    registry.check_whole()
    fetched = {
        card.path(file)
        for card in registry.cards
        for source in card.sources
        for file in source.files
    }

    def leave_out(parent: str, names: list[str]) -> Collection[str]:
        return {name for name in names if Path(parent, name) in fetched or name == "__pycache__"}

    folder.mkdir()
    for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(CHECKOUT / file, folder)
    for part in ("server", "models"):
        shutil.copytree(CHECKOUT / part, folder / part, ignore=leave_out)
    return folder
