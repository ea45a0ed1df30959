"""Installs a bundle's models below the data folder: all that it brings, or nothing.

Everything is unpacked and compared in a workshop; then the models are put in place, bases first.
One installation at a time; knows nothing of settings.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from server.catalog.card import CARD_FILE, Card
from server.catalog.registry import read_registry
from server.catalog.verify import differences
from server.delivery.bundle_format import MODELS, Manifest, printable
from server.delivery.bundle_reader import BundleReader
from server.delivery.locking import try_lock
from server.delivery.placing import workshop
from server.errors import BundleError, CardError

INSTALLED = "installed"
REPLACED = "replaced"
ALREADY_THERE = "already installed"

_BLOCK_BYTES = 4096


def install(
    bundle: BundleReader,
    models_dir: Path,
    installed: Path,
    *,
    approved_sha256: str | None = None,
    replace: bool = False,
) -> dict[str, str]:
    """Install the models of a bundle that nothing was read of yet but its manifest.

    Args:
        models_dir: the models that came with the software; bases may be there.
        installed: where the models go; its parent must be there.
        approved_sha256: what the digest of the whole file must be; None accepts any.
        replace: put the bundle's models in the place of other content under their names.

    Returns:
        INSTALLED, REPLACED or ALREADY_THERE by the model's name.

    Raises:
        BundleError: the bundle is not what it should be, or cannot be installed. Then `installed`
            holds the models that it held before.
    """
    try:
        installed.mkdir(exist_ok=True)
        with _alone(installed), workshop(installed) as shop:
            fates = _fates(bundle.manifest, installed, replace=replace)
            coming = [name for name, fate in fates.items() if fate != ALREADY_THERE]
            _check_space(bundle.manifest, coming, installed)
            _unpack(bundle, coming, shop.new)
            bundle.check_sha256(approved_sha256)
            cards = _check_cards(bundle.manifest, coming, (models_dir, installed, shop.new))
            bases_first = sorted(coming, key=lambda name: cards[name].base is not None)
            shop.put_in_place(bases_first)
            return fates
    except OSError as error:
        raise BundleError(
            f"cannot install into {installed}: {error.strerror}"
            + (f": {error.filename}" if error.filename else "")
        ) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock that the system lets go of when this process ends, however it ends."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(opened):
            raise BundleError(f"another bundle is being installed into {folder}")
        yield
    finally:
        os.close(opened)


def _fates(manifest: Manifest, installed: Path, *, replace: bool) -> dict[str, str]:
    """What is to become of each model of the bundle."""
    if not manifest.models:
        raise BundleError("the bundle holds no model")
    fates = {}
    for name in manifest.models:
        folder = installed / name
        if not folder.exists():
            fates[name] = INSTALLED
            continue
        different = differences(folder, manifest.of_model(name))
        if different and (not (folder / CARD_FILE).is_file() or any(folder.glob(f"*/{CARD_FILE}"))):
            raise BundleError(f"{folder} is in the way: it is not, or not only, a model's folder")
        if different and not replace:
            raise BundleError(
                f"model {name} is installed with other content ({', '.join(different)} in "
                f"{folder}); --replace puts the bundle's in its place"
            )
        fates[name] = REPLACED if different else ALREADY_THERE
    return fates


def _check_space(manifest: Manifest, names: Collection[str], folder: Path) -> None:
    pins = [pin for name in names for pin in manifest.of_model(name).values()]
    needed = sum(pin.bytes + _BLOCK_BYTES for pin in pins)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BundleError(f"{folder} has {free} bytes free, and the models need {needed}")


def _unpack(bundle: BundleReader, names: Collection[str], folder: Path) -> None:
    """Write the files of these models below the folder; the whole bundle is compared."""
    wanted = {
        f"{MODELS}{name}/{file}": folder / name / file
        for name in names
        for file in bundle.manifest.of_model(name)
    }
    for path, content in bundle.members():
        if path in wanted:
            wanted[path].parent.mkdir(parents=True, exist_ok=True)
            with wanted[path].open("xb") as file:
                for chunk in content:
                    file.write(chunk)


def _check_cards(
    manifest: Manifest, coming: Collection[str], places: tuple[Path, Path, Path]
) -> dict[str, Card]:
    """The bundle's cards, by name, read as a server would read them after the installation."""
    models_dir, installed, staged = places
    try:
        before = read_registry(models_dir, installed)
        registry = read_registry(models_dir, installed, staged)
        known = {broken.folder for broken in before.broken}
        known -= {installed / name for name in manifest.models if name not in coming}
        for broken in registry.broken:
            if broken.folder not in known:  # it is the bundle's, or stands on what the bundle has
                raise broken.error
    except CardError as error:
        reason = error.message.replace(f"{staged}{os.sep}", "")
        raise BundleError(f"cannot install: {printable(reason)}") from error
    for there in before.cards:
        if (
            there.name in coming
            and there.folder.is_relative_to(installed)
            and there.folder != installed / there.name
        ):
            raise BundleError(f"model {there.name} is in a folder of another name, {there.folder}")
    by_folder = {card.folder: card for card in registry.cards}
    cards = {}
    for name in manifest.models:
        card = by_folder.get((staged if name in coming else installed) / name)
        if card is None or card.name != name:
            raise BundleError(f"the card in the bundle's models/{name} is of another name")
        pins = {file: pin for file, pin in manifest.of_model(name).items() if file != CARD_FILE}
        if pins != card.files:
            differing = {f for f, _ in pins.items() ^ card.files.items()}
            raise BundleError(
                f"the card of {name} and the bundle's list of files do not agree about "
                f"{printable(', '.join(sorted(differing)))}"
            )
        cards[name] = card
    return cards
