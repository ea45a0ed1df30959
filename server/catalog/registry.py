"""From a name or alias to a model card.

Holds the cards found below the models folders, and what is known of those that cannot be read or
contradict each other: they stop only who asks for them. Knows nothing of HTTP or batching; immutable once built, so any thread
may read it.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from server.catalog.card import CARD_FILE, Card
from server.catalog.card_file import read_card, read_table
from server.errors import CardError, ModelNotFound, SettingError, unusable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokenCard:
    """A card that cannot be served, and the names it would have, as far as it says them.

    It cannot be read, or another card claims the same name.
    """

    folder: Path
    name: str
    aliases: frozenset[str]
    error: CardError


class Registry:
    """Cards by name and alias, in the order given; the first is the default model.

    Args:
        cards: those that can be served.
            No two of them claim one name or alias.
        broken: cards beside them that cannot be served.
    """

    def __init__(self, cards: Iterable[Card], broken: Iterable[BrokenCard] = ()) -> None:
        self.cards = tuple(cards)
        self.broken = tuple(broken)
        self._by_name = {name: card for card in self.cards for name in (card.name, *card.aliases)}

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
            CardError: the card of this name or alias cannot be served.
        """
        chosen: list[Card] = []
        for name in names:
            card = self._by_name.get(name)
            # A model's own name is more than what a broken card would like to be called, too.
            is_own = card is not None and card.name == name
            for broken in self.broken:
                if name == broken.name or (name in broken.aliases and not is_own):
                    raise broken.error
            if card is None:
                raise SettingError(f"model {name} not found; {self._what_is_here(name)}")
            if card not in chosen:
                chosen.append(card)
        if not chosen:
            raise SettingError("setting model: name at least one model to serve")
        return Registry(chosen)

    def warn_of_broken(self) -> None:
        """Tell the log, once each, what keeps cards from being served."""
        for message in self._faults():
            log.warning("%s (left out)", message)

    def check_whole(self) -> None:
        """Raise CardError if any card cannot be served."""
        for broken in self.broken:
            raise broken.error

    def _what_is_here(self, name: str) -> str:
        there = ", ".join(card.name for card in self.cards) or "none"
        near = difflib.get_close_matches(name, self._by_name, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        # A file that is no TOML does not say its aliases: the name may be one of them.
        faults = "; ".join(self._faults())
        return f"models here: {there}{hint}" + (f"; left out: {faults}" if faults else "")

    def _faults(self) -> list[str]:
        # Cards that contradict each other have one fault.
        return list(dict.fromkeys(broken.error.message for broken in self.broken))


def read_registry(models_dir: Path, *installed: Path) -> Registry:
    """Every card below the folders, sorted by name inside each; the last one with a name wins.

    Args:
        models_dir: must be there.
        installed: need not be there; holds what was imported or installed from a bundle.

    Raises:
        CardError: the folder is missing. Cards that are malformed, or that claim what is another
            one's, are among the `broken` of what is returned.
    """
    places = (models_dir, *installed)
    cards: dict[str, Card] = {}
    broken: list[BrokenCard] = []
    for place in places:
        try:
            if place == models_dir and not place.is_dir():
                fault = "is not a folder" if place.exists() else "does not exist"
                raise CardError(f"models folder {place} {fault}; set --models-dir")
            with contextlib.suppress(FileNotFoundError):
                next(place.iterdir(), None)  # the patterns below pass over what cannot be read
            # `model` or `organisation/model`; unlike "**", these patterns follow linked folders.
            found = (*place.glob(f"*/{CARD_FILE}"), *place.glob(f"*/*/{CARD_FILE}"))
        except (OSError, ValueError) as error:
            raise CardError(unusable(f"models folder {place}", error)) from error
        found_here: list[Card] = []
        broken_here: list[BrokenCard] = []
        folders = sorted(path.parent for path in found)
        # A model that is being installed lies in a hidden folder until it is whole.
        for folder in (f for f in folders if not _is_hidden(f.relative_to(place))):
            try:
                found_here.append(read_card(folder, *places))
            except CardError as error:
                broken_here.append(_broken_card(folder, place, error))
        by_name: dict[str, list[Card]] = {}
        for card in found_here:
            by_name.setdefault(card.name, []).append(card)
        here = {name: same[0] for name, same in by_name.items() if len(same) == 1}
        for name, same in by_name.items():
            if name not in here:
                broken_here += _all_claim(name, same)
        # Whichever comes last has the name, also if it cannot be read: who asks for it must not get
        # another model's vectors.
        hidden = {one.name for one in broken_here}
        cards = {name: card for name, card in cards.items() if name not in hidden} | here
        broken = [one for one in broken if one.name not in here] + broken_here
    contradicting = _contradicting(cards.values())
    left_out = {one.name for one in contradicting}
    cards = {name: card for name, card in cards.items() if name not in left_out}
    return Registry(cards.values(), [*broken, *contradicting])


def _contradicting(cards: Collection[Card]) -> list[BrokenCard]:
    """Those of these cards, of different names, with an alias that another one claims, too."""
    claims: dict[str, list[Card]] = {}
    for card in cards:
        for name in dict.fromkeys((card.name, *card.aliases)):
            claims.setdefault(name, []).append(card)
    broken: dict[str, BrokenCard] = {}
    for name, claiming in claims.items():
        if len(claiming) > 1:
            for one in _all_claim(name, claiming):
                if one.name != name:  # an alias takes nobody's own name
                    broken.setdefault(one.name, one)
    return list(broken.values())


def _all_claim(name: str, cards: Collection[Card]) -> list[BrokenCard]:
    names = " and ".join(card.name for card in cards)
    folders = ", ".join(str(card.folder) for card in cards)
    how_many = "both" if len(cards) == 2 else "all"
    error = CardError(f"models {names} {how_many} claim {name!r} ({folders})")
    return [BrokenCard(card.folder, card.name, frozenset(card.aliases), error) for card in cards]


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
