"""Reads bundles and compares every byte; see `bundle_format`. Not for several threads.

Knows nothing of where models are installed.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ValidationError

from server.catalog.card import FilePin
from server.catalog.verify import ignore_progress
from server.delivery.bundle_format import (
    CHUNK_BYTES,
    END,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    READABLE,
    Manifest,
    archive_bytes,
    header,
    padding,
    reason_of,
)
from server.errors import BundleError


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
            self._expect(header(path, pin.bytes), path)
            content = self._content(path, pin)
            yield path, content
            for _ in content:
                pass
        self._expect(END, "the end of the archive")
        if self._read(1):
            raise BundleError(f"bundle {self._path} grew while it was read")

    @property
    def sha256(self) -> str:
        """Digest of all that was read: the whole file's after `members` is exhausted."""
        return self._digest.hexdigest()

    def check_sha256(self, approved: str | None) -> None:
        """Raise BundleError if this is not the digest of the whole file; None accepts any."""
        check_approved(self._path, self.sha256, approved)

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
        if block != header(MANIFEST, info.size):
            raise BundleError(f"bundle {self._path}: wrong header of {MANIFEST}")
        content = self._read(info.size)
        rest = padding(info.size)
        if len(content) < info.size or self._read(len(rest)) != rest:
            raise BundleError(f"bundle {self._path} is cut off in {MANIFEST}")
        try:
            number = _Format.model_validate_json(content).format
            if number not in READABLE:
                raise BundleError(
                    f"bundle {self._path} has format {number}, and this software reads "
                    f"{' and '.join(map(str, READABLE))}: install a newer one"
                )
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise BundleError(f"bundle {self._path}: {MANIFEST}: {reason_of(error)}") from None
        if manifest.encoded() != content:
            raise BundleError(f"bundle {self._path}: {MANIFEST} is not written as it must be")
        return manifest

    def _expect(self, wanted: bytes, what: str) -> None:
        found = self._read(len(wanted))
        if found != wanted:
            raise BundleError(f"bundle {self._path}: {_mismatch(found, what)}")

    def _content(self, path: str, pin: FilePin) -> Iterator[bytes]:
        digest = hashlib.sha256()
        left = pin.bytes
        while left:
            chunk = self._read(min(left, CHUNK_BYTES))
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
        self._expect(padding(pin.bytes), f"what follows {path}")

    def _read(self, size: int) -> bytes:
        try:
            content = self._file.read(size)
        except OSError as error:
            raise BundleError(f"bundle {self._path}: {error.strerror}") from error
        self._digest.update(content)
        self._report(len(content))
        return content


def check_approved(path: Path, sha256: str, approved: str | None) -> None:
    """Raise BundleError if a bundle's digest is not the one that was approved; None accepts any."""
    if approved is not None and sha256 != approved.lower():
        raise BundleError(f"bundle {path} has sha256 {sha256}, not the approved {approved}")


class _Format(BaseModel, extra="ignore"):
    format: int


_KINDS: Mapping[bytes, str] = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a named pipe",
}


def _mismatch(found: bytes, what: str) -> str:
    """What is wrong where something else should stand, for a message."""
    try:
        info = tarfile.TarInfo.frombuf(found[: tarfile.BLOCKSIZE], "utf-8", "replace")
    except tarfile.HeaderError:
        return f"{what} is not as {MANIFEST} says"
    kind = _KINDS.get(info.type, "a member")
    return f"{kind} {info.name!r} stands where {what} should be"
