"""One file that brings models, and the software's wheels, to a machine without network.

A bundle is an uncompressed tar archive (weights and wheels do not get smaller) whose first member,
`bundle.json`, lists every other member with size and sha256, sorted by name. Owners, modes and
times are constants, so the manifest decides every byte of the headers and of the padding. Reading
therefore does not interpret an archive: it makes the headers that the manifest calls for and
compares. A link, a device, a path that climbs out, a second member of one name, or a byte too
many cannot be said in this format.

Knows how bundles are written and read, not where models are installed. Not for several threads.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from server import __version__
from server.catalog.card import CARD_FILE, Card, FilePin
from server.catalog.names import is_card_name
from server.catalog.verify import check_present, ignore_progress, sha256_of
from server.delivery.syncing import sync_folder
from server.errors import BundleError

FORMAT: Final = 1
MANIFEST = "bundle.json"
README = "README.txt"
MODELS = "models/"
WHEELS = "wheels/"
MAX_MANIFEST_BYTES = 1 << 20

_MODE = 0o644
_MTIME_S = 315_532_800  # 1980-01-01 UTC; of 0, some versions of tar say that it is implausible
_CHUNK_BYTES = 1 << 20
_END = bytes(2 * tarfile.BLOCKSIZE)
# Each part of a path: no ".", no "..", nothing hidden, nothing that looks like an option.
_PART = re.compile(r"\w[\w.+!\-]*")

_WITH_WHEELS = """\
To install it without network, with Python {python} on a machine of the kind its wheels are for:

  sha256sum {file}    # must be the digest that was approved
  tar xf {file} wheels
  python3 -m venv embedding-server
  embedding-server/bin/pip install --no-index --find-links wheels embedding-server
  embedding-server/bin/embedding-server bundle install {file}
"""
_WITHOUT_WHEELS = """\
It brings no wheels. To install it where embedding-server is installed:

  sha256sum {file}    # must be the digest that was approved
  embedding-server bundle install {file}
"""


def instructions(wheels: Iterable[str], file: str) -> str:
    """What to type on the machine without network, for a bundle with wheels of these names."""
    if not wheels:
        return _WITHOUT_WHEELS.format(file=file)
    # A wheel for one version has it twice; `cp311-abi3` is for 3.11 and all that follow.
    found = (re.search(r"-cp3(\d+)-cp3\1t?-", name) for name in wheels)
    minors = sorted({int(one[1]) for one in found if one})
    python = " or ".join(f"3.{minor}" for minor in minors) or "3.11 or newer"
    return _WITH_WHEELS.format(file=file, python=python)


class Manifest(BaseModel, extra="forbid", frozen=True):
    """What is in a bundle: `files`, by their paths in the archive, the manifest left out."""

    format: Literal[1] = FORMAT
    software: Annotated[str, Field(pattern=r"^embedding-server [\w.+!\-]{1,100}$")] = (
        f"embedding-server {__version__}"
    )
    files: dict[str, FilePin]

    @field_validator("files")
    @classmethod
    def _can_be_unpacked(cls, files: dict[str, FilePin]) -> dict[str, FilePin]:
        names = list(filter(None, map(_model_of_card, files)))
        cards = {f"{MODELS}{name}" for name in names}
        seen: dict[str, str] = {}
        for path in files:
            # Some file systems do not tell these apart.
            other = seen.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
            if other is not path:
                raise ValueError(f"{other!r} and {path!r} may be one file")
            if not all(_PART.fullmatch(part) for part in path.split("/")):
                raise ValueError(f"{path!r} is no path that a bundle may hold")
            folders = [str(folder) for folder in Path(path).parents]
            wheel = path.endswith(".whl") and folders[:-1] == [WHEELS.rstrip("/")]
            if not wheel and path != README and len(cards.intersection(folders)) != 1:
                raise ValueError(f"{path!r} is neither a wheel nor a file of exactly one model")
        for name in names:
            if not is_card_name(name):
                raise ValueError(f"{name!r} is no name of a model")
        return files

    @functools.cached_property
    def models(self) -> tuple[str, ...]:
        """The names of the models, sorted."""
        return tuple(filter(None, map(_model_of_card, self.files)))

    def of_model(self, name: str) -> dict[str, FilePin]:
        """A model's files, by their paths in its folder, the card among them."""
        return self._below(f"{MODELS}{name}/")

    @property
    def wheels(self) -> dict[str, FilePin]:
        """The wheels, by their file names."""
        return self._below(WHEELS)

    def _below(self, folder: str) -> dict[str, FilePin]:
        return {
            path.removeprefix(folder): pin
            for path, pin in self.files.items()
            if path.startswith(folder)
        }

    def encoded(self) -> bytes:
        """The one way to write this manifest."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()


class Contents:
    """What a new bundle will hold.

    Args:
        cards: their bases come along.
        wheels: files whose names are wheels'.

    Raises:
        ModelFileError: a model's file is missing.
        BundleError: a file's name cannot be in a bundle, or a wheel cannot be read.
    """

    def __init__(self, cards: Iterable[Card], wheels: Iterable[Path]) -> None:
        self._sources: dict[str, Path | bytes] = {}
        pins: dict[str, FilePin] = {}
        for card in cards:
            check_present(card)
            for owner in card.with_base:
                _check_folder(owner)
                folder = f"{MODELS}{owner.name}/"
                content = _read(owner.path(CARD_FILE))
                self._sources[folder + CARD_FILE] = content
                pins[folder + CARD_FILE] = _pin(content)
                for name, pin in owner.files.items():
                    self._sources[folder + name] = owner.path(name)
                    pins[folder + name] = pin
        wheels = list(wheels)
        for wheel in wheels:
            self._sources[WHEELS + wheel.name] = wheel
            pins[WHEELS + wheel.name] = _pin_of_file(wheel)
        readme = instructions([wheel.name for wheel in wheels], "FILE").encode()
        self._sources[README] = readme
        pins[README] = _pin(readme)
        try:
            self.manifest = Manifest(files=dict(sorted(pins.items())))
        except ValidationError as error:
            raise BundleError(f"cannot bundle: {_reason(error)}") from None
        if len(self.manifest.encoded()) > MAX_MANIFEST_BYTES:
            raise BundleError(f"cannot bundle {len(pins)} files: too many for one bundle")

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
            partial.replace(file)
            sync_folder(file.parent)
        except OSError as error:
            raise BundleError(f"cannot write {file}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)
        return digest.hexdigest()

    def _archive(self) -> Iterator[bytes]:
        manifest = self.manifest.encoded()
        yield from (_header(MANIFEST, len(manifest)), manifest, _padding(len(manifest)))
        for path, pin in self.manifest.files.items():
            yield _header(path, pin.bytes)
            yield from _checked_source(self._sources[path], pin)
            yield _padding(pin.bytes)
        yield _END


class BundleReader:
    """A bundle that is read from its beginning to its end, everything compared on the way.

    Args:
        file: open for reading, at its beginning.
        path: how messages call it.
        report: called with the number of bytes read since the last call.

    Raises:
        BundleError: it is no bundle, of another format, cut off, or has something at its end.
    """

    def __init__(
        self, file: BinaryIO, path: Path, report: Callable[[int], None] = ignore_progress
    ) -> None:
        self._file = file
        self._path = path
        self._report = report
        self._digest = hashlib.sha256()
        self.manifest = self._read_manifest()
        found, wanted = os.fstat(file.fileno()).st_size, archive_bytes(self.manifest)
        if found < wanted:
            raise BundleError(f"bundle {path} is cut off: it has {found} of {wanted} bytes")
        if found > wanted:
            raise BundleError(f"bundle {path} has {found - wanted} bytes after its end")

    def members(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Every file's path in the archive and its content in chunks, in the manifest's order.

        What the caller does not read of a content is read and compared before the next. Only
        when this iterator is exhausted has everything been compared.

        Raises:
            BundleError: a byte is not what the manifest says, or the file cannot be read.
        """
        for path, pin in self.manifest.files.items():
            self._expect(_header(path, pin.bytes), path)
            content = self._content(path, pin)
            yield path, content
            for _ in content:
                pass
        self._expect(_END, "the end of the archive")
        if self._read(1):
            raise BundleError(f"bundle {self._path} grew while it was read")

    @property
    def sha256(self) -> str:
        """Digest of all that was read: the whole file's after `members` is exhausted."""
        return self._digest.hexdigest()

    def check_sha256(self, approved: str | None) -> None:
        """Raise BundleError if this is not the digest of the whole file; None accepts any."""
        if approved is not None and self.sha256 != approved.lower():
            raise BundleError(
                f"bundle {self._path} has sha256 {self.sha256}, not the approved {approved}"
            )

    def _read_manifest(self) -> Manifest:
        block = self._read(tarfile.BLOCKSIZE)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError):
            raise BundleError(f"{self._path} is no bundle") from None
        if info.name != MANIFEST:
            raise BundleError(f"{self._path} is no bundle: it does not begin with {MANIFEST}")
        if not 0 < info.size <= MAX_MANIFEST_BYTES:
            raise BundleError(f"bundle {self._path}: {MANIFEST} has {info.size} bytes")
        if block != _header(MANIFEST, info.size):
            raise BundleError(f"bundle {self._path}: wrong header of {MANIFEST}")
        content = self._read(info.size)
        padding = _padding(info.size)
        if len(content) < info.size or self._read(len(padding)) != padding:
            raise BundleError(f"bundle {self._path} is cut off in {MANIFEST}")
        try:
            number = _Format.model_validate_json(content).format
            if number != FORMAT:
                raise BundleError(
                    f"bundle {self._path} has format {number}, and this software reads {FORMAT}: "
                    "install a newer one"
                )
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise BundleError(f"bundle {self._path}: {MANIFEST}: {_reason(error)}") from None
        if manifest.encoded() != content:
            raise BundleError(f"bundle {self._path}: {MANIFEST} is not written as it must be")
        return manifest

    def _expect(self, wanted: bytes, what: str) -> None:
        found = self._read(len(wanted))
        if found != wanted:
            raise BundleError(f"bundle {self._path}: {_difference(found, what)}")

    def _content(self, path: str, pin: FilePin) -> Iterator[bytes]:
        digest = hashlib.sha256()
        left = pin.bytes
        while left:
            chunk = self._read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise BundleError(f"bundle {self._path} is cut off in {path}")
            left -= len(chunk)
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != pin.sha256:
            raise BundleError(
                f"bundle {self._path}: {path} has sha256 {digest.hexdigest()}, but {MANIFEST} says "
                f"{pin.sha256}"
            )
        self._expect(_padding(pin.bytes), f"what follows {path}")

    def _read(self, size: int) -> bytes:
        try:
            content = self._file.read(size)
        except OSError as error:
            raise BundleError(f"bundle {self._path}: {error.strerror}") from error
        self._digest.update(content)
        self._report(len(content))
        return content


def archive_bytes(manifest: Manifest) -> int:
    """Size of the bundle with this manifest."""
    sizes = {MANIFEST: len(manifest.encoded())}
    sizes |= {path: pin.bytes for path, pin in manifest.files.items()}
    parts = (len(_header(path, size)) + size + len(_padding(size)) for path, size in sizes.items())
    return sum(parts) + len(_END)


def check_output(file: Path, *, force: bool) -> None:
    """Raise BundleError if a bundle cannot be written there, as far as one can tell before."""
    if not file.parent.is_dir():
        raise BundleError(f"cannot write {file}: there is no folder {file.parent}")
    if file.is_dir():
        raise BundleError(f"cannot write {file}: it is a folder")
    if not force and (file.exists() or file.is_symlink()):
        raise BundleError(f"{file} exists; --force replaces it")


class _Format(BaseModel, extra="ignore"):
    format: int


def _model_of_card(path: str) -> str | None:
    """The model's name if this is the path of a card."""
    found = re.fullmatch(f"{MODELS}(.+)/{re.escape(CARD_FILE)}", path, re.DOTALL)
    return found[1] if found else None


def _header(path: str, size: int) -> bytes:
    """What stands before a member: one block, more only for a long name or over 8 GiB."""
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = size, _MODE, _MTIME_S
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


_KINDS: Mapping[bytes, str] = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a named pipe",
}


def _difference(found: bytes, what: str) -> str:
    """What is wrong where something else should stand, for a message."""
    try:
        info = tarfile.TarInfo.frombuf(found[: tarfile.BLOCKSIZE], "utf-8", "replace")
    except tarfile.HeaderError:
        return f"{what} is not as {MANIFEST} says"
    kind = _KINDS.get(info.type, "a member")
    return f"{kind} {info.name!r} stands where {what} should be"


def _checked_source(source: Path | bytes, pin: FilePin) -> Iterator[bytes]:
    """The content in chunks, of exactly the pinned size and digest."""
    if isinstance(source, bytes):
        yield source
        return
    digest, left = hashlib.sha256(), pin.bytes
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
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


def _pin(content: bytes) -> FilePin:
    return FilePin(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


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


def _reason(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return printable(f"{place}: {problem['msg']}" if place else problem["msg"])


def printable(text: str) -> str:
    """Text from a bundle for a message: it must not steer the terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
