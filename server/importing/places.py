"""Which name and place an imported model may take, so that it stands in no other model's way.

Reads the cards that are there. Any thread may call.
"""

from __future__ import annotations

import re
from pathlib import Path

from server.catalog.card import CARD_FILE
from server.catalog.names import is_card_name
from server.catalog.registry import Registry, read_registry
from server.errors import ImportRefused
from server.importing.folder import ModelFolder
from server.importing.origin import given_name
from server.importing.plan import Wishes

_ALIAS = re.compile(r"[^\s,]+")  # settings separate names by commas


def check_free(into: Path, name: str, wishes: Wishes, beside: Path | None = None) -> None:
    """See that no other model has these names, or neither could be asked for.

    Raises:
        ImportRefused: a name or alias cannot be one, or is taken.
        CardError: a card that is there already claims one of these names, and is malformed.
    """
    check_name(name)
    place = into / name
    if any(place.glob(f"*/{CARD_FILE}")):
        raise ImportRefused(f"{place} holds other models; choose another name with --name")
    if place.parent != into and (place.parent / CARD_FILE).exists():
        raise ImportRefused(f"{place.parent} is a model itself; choose another name with --name")
    if place.exists() and not wishes.replace:
        raise ImportRefused(f"model {name} is there already ({place}); --replace replaces it")
    _check_names(place, name, wishes, beside, into)


def _check_names(place: Path, name: str, wishes: Wishes, beside: Path | None, into: Path) -> None:
    for alias in wishes.aliases:
        if not _ALIAS.fullmatch(alias) or not alias.isprintable():
            raise ImportRefused(f"--alias: {alias!r} is empty or holds white space or a comma")
    places = [*([beside] if beside else []), *([into] if into.is_dir() else [])]
    registry = read_registry(*places) if places else Registry(())
    for broken in registry.broken:
        if broken.folder != place and {broken.name, *broken.aliases} & {name, *wishes.aliases}:
            raise broken.error
    for card in registry.cards:
        if card.name == name:
            if card.folder != place:
                raise ImportRefused(
                    f"model {name} came with this software ({card.folder}); choose another name "
                    "with --name"
                )
            continue
        if card.base is not None and card.base.name == name:
            raise ImportRefused(f"model {card.name} is made of the {name} that is there")
        taken = {card.name, *card.aliases} & {name, *wishes.aliases}
        if taken:
            raise ImportRefused(f"{min(taken)!r} is what clients call the model {card.name}")


def check_name(name: str) -> None:
    """Raise ImportRefused if no model can have this name."""
    if not is_card_name(name):
        raise ImportRefused(
            f"{name!r} cannot be a model's name (letters, digits, '.', '_', '-', at most one '/'); "
            "choose one with --name"
        )


def choose_name(folder: ModelFolder, wishes: Wishes) -> str:
    """The name asked for, else the folder's, also of a folder in the hub client's cache.

    Raises:
        ImportRefused: it cannot be the name of a model.
    """
    name = wishes.name or given_name(folder.given_path)
    check_name(name)
    return name
