"""From a name or alias to a model card.

Holds the cards found below the models folders, and what is known of those that cannot be read: they
stop only who asks for them. Knows nothing of HTTP or batching; immutable once built, so any thread
may read it.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from server.catalog.card import CARD_FILE, Card, read_card, read_table
from server.errors import CardError, ModelNotFound, SettingError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokenCard:
    """A card that cannot be read, and the names it would have, as far as it says them."""

    folder: Path
    name: str
    aliases: frozenset[str]
    error: CardError


class Registry:
    """Cards by name and alias, in the order given; the first is the default model.

    Args:
        broken: cards beside them that cannot be read.

    Raises:
        CardError: two cards claim one name or alias.
    """

    def __init__(self, cards: Iterable[Card], broken: Iterable[BrokenCard] = ()) -> None:
        self.cards = tuple(cards)
        self.broken = tuple(broken)
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
            CardError: the card of this name or alias cannot be read.
        """
        chosen: list[Card] = []
        for name in names:
            for broken in self.broken:
                if name == broken.name or name in broken.aliases:
                    raise broken.error
            card = self._by_name.get(name)
            if card is None:
                raise SettingError(f"model {name} not found; {self._what_is_here(name)}")
            if card not in chosen:
                chosen.append(card)
        if not chosen:
            raise SettingError("setting model: name at least one model to serve")
        return Registry(chosen)

    def warn_of_broken(self) -> None:
        """Tell the log, once each, of the cards that cannot be read."""
        for broken in self.broken:
            log.warning("%s (this model is left out)", broken.error.message)

    def check_whole(self) -> None:
        """Raise CardError if any card cannot be read."""
        for broken in self.broken:
            raise broken.error

    def _what_is_here(self, name: str) -> str:
        there = ", ".join(card.name for card in self.cards) or "none"
        near = difflib.get_close_matches(name, self._by_name, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        # A file that is no TOML does not say its aliases: the name may be one of them.
        unread = "; ".join(broken.error.message for broken in self.broken)
        return f"models here: {there}{hint}" + (f"; cannot be read: {unread}" if unread else "")


def read_registry(models_dir: Path, *installed: Path) -> Registry:
    """Every card below the folders, sorted by name inside each; the last one with a name wins.

    Args:
        models_dir: must be there.
        installed: need not be there; holds what was imported or installed from a bundle.

    Raises:
        CardError: the folder is missing, or two cards claim one alias. Cards that are malformed
            are among the `broken` of what is returned.
    """
    places = (models_dir, *installed)
    cards: dict[str, Card] = {}
    broken: list[BrokenCard] = []
    for place in places:
        try:
            if place == models_dir and not place.is_dir():
                fault = "is not a folder" if place.exists() else "does not exist"
                raise CardError(f"models folder {place} {fault}; set --models-dir")
            # `model` or `organisation/model`; unlike "**", these patterns follow linked folders.
            found = (*place.glob(f"*/{CARD_FILE}"), *place.glob(f"*/*/{CARD_FILE}"))
        except (OSError, ValueError) as error:
            raise CardError(f"models folder {place}: {error}") from error
        here: dict[str, Card] = {}
        broken_here: list[BrokenCard] = []
        folders = sorted(path.parent for path in found)
        # A model that is being installed lies in a hidden folder until it is whole.
        for folder in (f for f in folders if not _is_hidden(f.relative_to(place))):
            try:
                card = read_card(folder, *places)
            except CardError as error:
                broken_here.append(_broken_card(folder, place, error))
                continue
            if card.name in here:
                raise CardError(
                    f"models {card.name} and {card.name} both claim {card.name!r} "
                    f"({here[card.name].folder}, {folder})"
                )
            here[card.name] = card
        # Whichever comes last has the name, also if it cannot be read: who asks for it must not get
        # another model's vectors.
        hidden = {one.name for one in broken_here}
        cards = {name: card for name, card in cards.items() if name not in hidden} | here
        broken = [one for one in broken if one.name not in here] + broken_here
    return Registry(cards.values(), broken)


def _broken_card(folder: Path, place: Path, error: CardError) -> BrokenCard:
    try:
        table = read_table(folder)
    except CardError:
        table = {}
    name, aliases = table.get("name"), table.get("aliases")
    if not isinstance(name, str):
        name = folder.relative_to(place).as_posix()
    told = aliases if isinstance(aliases, list) else []
    return BrokenCard(folder, name, frozenset(a for a in told if isinstance(a, str)), error)


def _is_hidden(folder: Path) -> bool:
    return any(part.startswith(".") for part in folder.parts)
