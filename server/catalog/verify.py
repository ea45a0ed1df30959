"""Whether a model's files are the ones its card vouches for.

Knows nothing of HTTP or batching; may be called from any thread (hashing releases the GIL).
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from server.catalog.card import Card, FilePin
from server.errors import ModelFileError
from server.program.command_lines import own_command

_CHUNK_BYTES = 1 << 18


def ignore_progress(_bytes: int) -> None:
    """For callers to whom nobody listens."""


def missing_files(card: Card) -> list[str]:
    """Files of the card and its base that are absent or of another size, as `model/file`."""
    missing = []
    for owner in card.with_base:
        for name, pin in owner.files.items():
            path = owner.path(name)
            if not path.is_file() or path.stat().st_size != pin.bytes:
                missing.append(f"{owner.name}/{name}")
    return missing


def check_present(card: Card) -> None:
    """Raise ModelFileError, saying how to get them, unless every file is there in its full size."""
    missing = missing_files(card)
    if missing:
        raise ModelFileError(
            f"model {card.name}: missing or incomplete: {', '.join(missing)}; fetch with: "
            f"{own_command('models', 'pull', card.name)}"
        )


def differences(
    folder: Path, pins: Mapping[str, FilePin], report: Callable[[int], None] = ignore_progress
) -> dict[str, str]:
    """Compare every byte of files below a folder with what is said of them.

    Args:
        report: called with the number of bytes that were read since the last call.

    Returns:
        What is wrong, a sentence with the path, by the file's name; empty if every byte is right.
    """
    found = {name: _difference(folder / name, pin, report) for name, pin in pins.items()}
    return {name: difference for name, difference in found.items() if difference}


def check_files(card: Card) -> None:
    """Hash the card's own files (not its base's).

    Raises:
        ModelFileError: files' bytes are not those of the card; the message names each of them.
    """
    wrong = differences(card.folder, card.files)
    if wrong:
        raise ModelFileError(
            f"model {card.name}: {'; '.join(wrong.values())}; delete the file{'s' * (len(wrong) > 1)} "
            f"and fetch again with: {own_command('models', 'pull', card.name)}, or bring the "
            "model again from its bundle"
        )


def sha256_of(path: Path, report: Callable[[int], None] = ignore_progress) -> str:
    """The file's digest in hex; raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(chunk):
            digest.update(chunk[:size])
            report(size)
    return digest.hexdigest()


def _difference(path: Path, pin: FilePin, report: Callable[[int], None]) -> str | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a named pipe would never end
            return f"{path} is no regular file"
        if status.st_size != pin.bytes:
            return f"{path} has {status.st_size} bytes, but the card says {pin.bytes}"
        sha256 = sha256_of(path, report)
    except OSError as error:
        return f"{path}: {error.strerror}"
    if sha256 != pin.sha256:
        return f"{path} has sha256 {sha256}, but the card says {pin.sha256}"
    return None
