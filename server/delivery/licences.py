"""The licence texts of wheels and models, in one file for people to read. Pure but for own files."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

from server.catalog.card import Card
from server.delivery.wheel_metadata import LICENCE_FILE, OWN_LICENCE, WheelMetadata
from server.program.command_lines import CHECKOUT, DISTRIBUTION, is_checkout

_RULE = "=" * 78
_HEAD = """\
Licences of what comes with this file: Python packages (wheels) and models.
Each text is as its publisher ships it, under the path that it has there.
"""


class Licences:
    """Says under which terms each wheel and model comes.

    Args:
        cards: models, bases among them.
        wheels: in any order.
    """

    def __init__(self, cards: Iterable[Card], wheels: Iterable[WheelMetadata]) -> None:
        self._sections: list[tuple[str, dict[str, str]]] = []
        self.without_text: list[str] = []
        for wheel in sorted(wheels, key=lambda one: one.file):
            self._add(f"{wheel.name} {wheel.version}", wheel.licence, wheel.licence_texts)
        for card in sorted(cards, key=lambda one: one.name):
            self._add(f"model {card.name}", _licence(card), _texts(card))

    def _add(self, name: str, licence: str | None, texts: dict[str, str]) -> None:
        title = f"{name}: {licence or 'its metadata name no licence'}"
        self._sections.append((title, texts))
        if not texts:
            self.without_text.append(title)

    def encoded(self) -> bytes:
        """The whole file, UTF-8; those whose text is missing stand at its beginning."""
        lines = [_HEAD]
        if self.without_text:
            lines += ["No licence text comes with these; what is said of them:", ""]
            lines += [*(f"- {title}" for title in self.without_text), ""]
        for title, texts in self._sections:
            lines += [_RULE, title, _RULE, ""]
            for path, text in sorted(texts.items()):
                lines += [f"--- {path}", "", text, ""]
        return "\n".join(lines).encode("utf-8", "replace")


def _licence(card: Card) -> str:
    return card.license + (f" (model of {card.owned_by})" if card.owned_by else "")


def _texts(card: Card) -> dict[str, str]:
    """Texts among the model's own files; that of its base's licence stands with the base."""
    texts = {
        name: card.path(name).read_text(encoding="utf-8", errors="replace")
        for name in card.files
        if LICENCE_FILE.fullmatch(name.rpartition("/")[2])
    }
    if not texts and card.license == OWN_LICENCE and (text := _own_licence()):
        return {f"{OWN_LICENCE}, as {DISTRIBUTION} ships its text": text}
    return texts


def _own_licence() -> str | None:
    if is_checkout():
        return (CHECKOUT / "LICENSE").read_text(encoding="utf-8").strip("\n")
    try:
        text = distribution(DISTRIBUTION).read_text("licenses/LICENSE")
    except PackageNotFoundError:  # files of the server without their metadata
        return None
    return text.strip("\n") if text else None
