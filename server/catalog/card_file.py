"""`card.toml` in a model's folder: a card as it is read from disk and written to it.

A variant's file says only what its base does not. Both ways the schema is `Card`: what was written
reads to an equal card. Knows nothing of HTTP or batching; it may be called from any thread.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from server.catalog.card import CARD_FILE, ENCODER_KEYS, OWN_KEYS, Card
from server.catalog.names import stays_below
from server.errors import CardError


def read_card(folder: Path, *models_dirs: Path) -> Card:
    """Read `folder/card.toml`; a card that names a `base` takes over what it does not say itself.

    Args:
        models_dirs: where bases are looked for; the last that has one wins.

    Raises:
        CardError: the file is missing, malformed, or its base cannot be read.
    """
    table = read_table(folder)
    base_name = table.pop("base", None)
    base = None
    if base_name is not None:
        base = _read_base(str(base_name), table, folder, models_dirs)
    if "folder" in table:
        raise CardError(f"card {folder / CARD_FILE}: folder: Extra inputs are not permitted")
    if table.get("dtype", "float32") in ("float16", "bfloat16", "int8"):
        raise CardError(
            f"card {folder / CARD_FILE}: dtype: must be float32; torch.dtype says what a GPU computes in"
        )
    own = table | {"folder": folder}
    try:
        return base.variant(own) if base else Card.model_validate(own)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "card"
        raise CardError(f"card {folder / CARD_FILE}: {field}: {problem['msg']}") from None


def write_card(card: Card, folder: Path, *models_dirs: Path) -> None:
    """Write `folder/card.toml`, whole or not at all; `read_card` finds an equal card in it.

    Args:
        folder: must be there.
        models_dirs: where a variant's base is looked for.

    Raises:
        CardError: the file cannot be written, or the base lies elsewhere.
    """
    import tomli_w  # serving only reads cards

    table = _table(card, folder, models_dirs)
    try:
        with tempfile.NamedTemporaryFile("wb", dir=folder, delete=False) as file:
            scratch = Path(file.name)
            try:
                tomli_w.dump(table, file)
                file.flush()
                os.fsync(file.fileno())
                scratch.chmod(0o644)  # the one who serves may be another than who writes
                scratch.replace(folder / CARD_FILE)
            except BaseException:
                scratch.unlink()
                raise
    except OSError as error:
        raise CardError(f"card {folder / CARD_FILE}: {error.strerror}") from error


def read_table(folder: Path) -> dict[str, Any]:
    """What `folder/card.toml` says, whether or not that makes a card.

    Raises:
        CardError: the file is missing or no TOML that can be read.
    """
    path = folder / CARD_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise CardError(f"card {path}: nested too deeply") from None
    except (OSError, ValueError) as error:  # no UTF-8, no TOML, or a number of too many digits
        reason = error.strerror if isinstance(error, OSError) else error
        raise CardError(f"card {path}: {reason}") from error


def _read_base(name: str, own: dict[str, Any], folder: Path, models_dirs: tuple[Path, ...]) -> Card:
    """The base that a card names; what its encoder decides must not be among the card's `own`."""
    card = folder / CARD_FILE
    places = ", ".join(map(str, models_dirs))
    if not stays_below(name):
        raise CardError(f"card {card}: base {name} would lie outside {places}")
    try:
        found = [place / name for place in models_dirs if (place / name / CARD_FILE).exists()]
    except OSError as error:
        raise CardError(f"card {card}: base {name}: {error.strerror}") from error
    if not found:
        raise CardError(f"card {card}: base {name} is not in {places}")
    try:
        base = None if "base" in read_table(found[-1]) else read_card(found[-1], *models_dirs)
    except CardError as error:
        raise CardError(f"card {card}: base {name}: {error.message}") from error
    if base is None:
        raise CardError(f"card {card}: base {name} has a base itself")
    changed = ENCODER_KEYS & own.keys()
    if changed:
        raise CardError(f"card {card}: {min(changed)} is decided by the base {name}")
    return base


def _table(card: Card, folder: Path, models_dirs: tuple[Path, ...]) -> dict[str, Any]:
    """What the file says: neither defaults that nobody chose, nor what a base says already."""
    said = card.model_dump(exclude={"folder"}, exclude_unset=True, exclude_none=True)
    if card.base is None:
        return said
    place = next((one for one in models_dirs if card.base.folder.is_relative_to(one)), None)
    if place is None:
        places = ", ".join(map(str, models_dirs))
        raise CardError(f"card {folder / CARD_FILE}: base {card.base.name} is not in {places}")
    taken_over = card.base.model_dump(exclude=OWN_KEYS)
    said = {key: value for key, value in said.items() if value != taken_over.get(key)}
    return said | {"base": card.base.folder.relative_to(place).as_posix()}
