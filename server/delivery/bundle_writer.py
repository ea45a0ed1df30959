"""Writes bundles; see `bundle_format`. Not for several threads."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from server.catalog.card import CARD_FILE, Card, FilePin
from server.catalog.verify import check_present, sha256_of
from server.delivery.bundle_format import (
    CHUNK_BYTES,
    END,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MODELS,
    README,
    WHEELS,
    Manifest,
    archive_bytes,
    header,
    instructions,
    padding,
    reason_of,
)
from server.delivery.papers import Papers
from server.delivery.signatures import signature_of
from server.delivery.syncing import sync_folder
from server.errors import BundleError


class Contents:
    """What a new bundle will hold.

    Args:
        cards: their bases come along.
        wheels: files whose names are wheels'.

    Attributes:
        papers: the SBOM and the licences, by name.
        without_licence_text: a line for each wheel and model that brings no licence text.

    Raises:
        ModelFileError: a model's file is missing.
        BundleError: a file's name cannot be in a bundle, or a wheel cannot be read.
        MissingExtra: `papers` is not installed.
    """

    def __init__(self, cards: Iterable[Card], wheels: Iterable[Path]) -> None:
        self._sources: dict[str, Path | bytes] = {}
        self._pins: dict[str, FilePin] = {}
        models: dict[str, tuple[Card, FilePin]] = {}
        for card in cards:
            check_present(card)
            for owner in card.with_base:
                models[owner.name] = (owner, self._add_model(owner))
        pinned = {wheel: _pin_of_file(wheel) for wheel in wheels}
        for wheel, pin in pinned.items():
            self._sources[WHEELS + wheel.name] = wheel
            self._pins[WHEELS + wheel.name] = pin
        papers = Papers([models[name] for name in sorted(models)], pinned)
        self.without_licence_text, self.papers = papers.without_text, papers.files
        for name, content in papers.files.items():
            self._add_bytes(name, content)
        readme = instructions([wheel.name for wheel in pinned], "FILE").encode()
        self._add_bytes(README, readme)
        try:
            self.manifest = Manifest(files=dict(sorted(self._pins.items())))
        except ValidationError as error:
            raise BundleError(f"cannot bundle: {reason_of(error)}") from None
        if len(self.manifest.encoded()) > MAX_MANIFEST_BYTES:
            raise BundleError(f"cannot bundle {len(self._pins)} files: too many for one bundle")

    def _add_model(self, card: Card) -> FilePin:
        """Add a model's files; returns the pin of its card's file."""
        _check_folder(card)
        folder = f"{MODELS}{card.name}/"
        for name, pin in card.files.items():
            self._sources[folder + name] = card.path(name)
            self._pins[folder + name] = pin
        return self._add_bytes(folder + CARD_FILE, _read(card.path(CARD_FILE)))

    def _add_bytes(self, path: str, content: bytes) -> FilePin:
        self._sources[path] = content
        self._pins[path] = pin = FilePin(
            bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        return pin

    @property
    def archive_bytes(self) -> int:
        """Size of the bundle."""
        return archive_bytes(self.manifest)

    def write(self, file: Path, *, force: bool, report: Callable[[int], None]) -> str:
        """Write the bundle, which appears under its name when it is complete and on the disk.

        Args:
            force: replace a file that is there.
            report: called with the number of bytes written since the last call.

        Returns:
            The sha256 of the whole file.

        Raises:
            BundleError: the file is there, or cannot be written, or a model's file is not what its
                card says.
        """
        check_output(file, force=force)
        partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
        try:
            with partial.open("xb") as opened:
                digest = hashlib.sha256()
                for chunk in self._archive():
                    opened.write(chunk)
                    digest.update(chunk)
                    report(len(chunk))
                opened.flush()
                os.fsync(opened.fileno())
            check_output(file, force=force)  # another one may have come meanwhile
            signature_of(file).unlink(missing_ok=True)  # of the file that is replaced
            partial.replace(file)
            sync_folder(file.parent)
        except OSError as error:
            raise BundleError(f"cannot write {file}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)
        return digest.hexdigest()

    def _archive(self) -> Iterator[bytes]:
        manifest = self.manifest.encoded()
        yield from (header(MANIFEST, len(manifest)), manifest, padding(len(manifest)))
        for path, pin in self.manifest.files.items():
            yield header(path, pin.bytes)
            yield from _checked_source(self._sources[path], pin)
            yield padding(pin.bytes)
        yield END


def check_output(file: Path, *, force: bool) -> None:
    """Raise BundleError if a bundle cannot be written there, as far as one can tell before."""
    if not file.parent.is_dir():
        raise BundleError(f"cannot write {file}: there is no folder {file.parent}")
    if file.is_dir():
        raise BundleError(f"cannot write {file}: it is a folder")
    for there in (file, signature_of(file)):
        if not force and (there.exists() or there.is_symlink()):
            raise BundleError(f"{there} exists; --force replaces it")


def _checked_source(source: Path | bytes, pin: FilePin) -> Iterator[bytes]:
    """The content in chunks, of exactly the pinned size and digest."""
    if isinstance(source, bytes):
        yield source
        return
    digest, left = hashlib.sha256(), pin.bytes
    try:
        with source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                left -= len(chunk)
                digest.update(chunk)
                if left < 0:
                    break
                yield chunk
    except OSError as error:
        raise BundleError(f"{source}: {error.strerror}") from error
    if left or digest.hexdigest() != pin.sha256:
        raise BundleError(f"{source} has not the bytes of sha256 {pin.sha256}, as its card says")


def _check_folder(card: Card) -> None:
    """A variant finds its base by the folder's name, and a bundle names folders by their cards."""
    if not card.folder.absolute().as_posix().endswith(f"/{card.name}"):
        raise BundleError(f"model {card.name} lies in a folder of another name, {card.folder}")


def _pin_of_file(path: Path) -> FilePin:
    try:
        return FilePin(bytes=path.stat().st_size, sha256=sha256_of(path))
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
