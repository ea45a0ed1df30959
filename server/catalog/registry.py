"""From a name or alias to a model card.

Holds the cards found below one models folder. Knows nothing of HTTP or batching; immutable once
built, so any thread may read it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from server.catalog.card import CARD_FILE, Card, read_card
from server.errors import CardError, ModelNotFound, SettingError


class Registry:
    """Cards by name and alias, in the order given; the first is the default model.

    Raises:
        CardError: two cards claim one name or alias.
    """

    def __init__(self, cards: Iterable[Card]) -> None:
        self.cards = tuple(cards)
        self._by_name: dict[str, Card] = {}
        for card in self.cards:
            for name in (card.name, *card.aliases):
                other = self._by_name.setdefault(name, card)
                if other is not card:
                    raise CardError(
                        f"models {other.name} and {card.name} both claim {name!r} "
                        f"({other.folder}, {card.folder})"
                    )

    def resolve(self, name: str) -> Card:
        """The card with this name or alias.

        Raises:
            ModelNotFound: there is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise ModelNotFound(name, [card.name for card in self.cards]) from None

    def select(self, names: Iterable[str]) -> Registry:
        """The registry of just these models, in this order.

        Raises:
            SettingError: a name is unknown; the message lists what there is.
        """
        chosen: list[Card] = []
        for name in names:
            card = self._by_name.get(name)
            if card is None:
                near = difflib.get_close_matches(name, self._by_name, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                there = ", ".join(card.name for card in self.cards) or "none"
                raise SettingError(f"model {name} not found; models here: {there}{hint}")
            if card not in chosen:
                chosen.append(card)
        if not chosen:
            raise SettingError("setting model: name at least one model to serve")
        return Registry(chosen)


def read_registry(models_dir: Path, *installed: Path) -> Registry:
    """Every card below the folders, sorted by name inside each; the last one with a name wins.

    Args:
        models_dir: must be there.
        installed: need not be there; holds what was imported or installed from a bundle.

    Raises:
        CardError: the folder is missing, a card is malformed, or two cards claim one alias.
    """
    places = (models_dir, *installed)
    cards: dict[str, Card] = {}
    for place in places:
        try:
            if place == models_dir and not place.is_dir():
                raise CardError(f"models folder {place} does not exist; set --models-dir")
            # `model` or `organisation/model`; unlike "**", these patterns follow linked folders.
            found = (*place.glob(f"*/{CARD_FILE}"), *place.glob(f"*/*/{CARD_FILE}"))
        except (OSError, ValueError) as error:
            raise CardError(f"models folder {place}: {error}") from error
        here: dict[str, Card] = {}
        folders = sorted(path.parent for path in found)
        # A model that is being installed lies in a hidden folder until it is whole.
        for folder in (f for f in folders if not _is_hidden(f.relative_to(place))):
            card = read_card(folder, *places)
            if card.name in here:
                raise CardError(
                    f"models {card.name} and {card.name} both claim {card.name!r} "
                    f"({here[card.name].folder}, {folder})"
                )
            here[card.name] = card
        cards |= here
    return Registry(cards.values())


def _is_hidden(folder: Path) -> bool:
    return any(part.startswith(".") for part in folder.parts)
