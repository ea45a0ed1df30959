"""Whether a model's files are the ones its card vouches for.

Knows nothing of HTTP or batching; may be called from any thread (hashing releases the GIL).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from server.catalog.card import Card
from server.errors import ModelFileError


def missing_files(card: Card) -> list[str]:
    """Files of the card and its base that are absent or of another size, as `model/file`."""
    missing = []
    for owner in _owners(card):
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
            f"embedding-server models pull {card.name}"
        )


def check_files(card: Card) -> None:
    """Hash the card's own files (not its base's).

    Raises:
        ModelFileError: a file's bytes are not those of the card; the message names the file.
    """
    for name, pin in card.files.items():
        path = card.path(name)
        try:
            found = sha256_of(path)
        except OSError as error:
            raise ModelFileError(f"model {card.name}: {path}: {error.strerror}") from error
        if found != pin.sha256:
            raise ModelFileError(
                f"model {card.name}: {path} has sha256 {found}, but the card says {pin.sha256}; "
                f"delete the file and fetch it with: embedding-server models pull {card.name}"
            )


def sha256_of(path: Path) -> str:
    """The file's digest in hex; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _owners(card: Card) -> list[Card]:
    return [card.base, card] if card.base else [card]
