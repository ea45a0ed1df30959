"""A fitted rotation as a model of its own: a card beside the base's, in the data folder.

The folder appears complete or not at all.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import save

from server.catalog.card import Card, FilePin, Matryoshka, Neighbours
from server.catalog.card_file import read_card, write_card
from server.catalog.names import is_card_name
from server.catalog.registry import Registry, read_registry
from server.delivery.placing import workshop
from server.errors import FitRefused, OutputFileError
from server.fitting.measuring import MIN_TEXTS, Kept
from server.inference.loader import load_rotation
from server.inference.neighbours import Matrix
from server.settings import Settings

ROTATION_FILE = "rotation.safetensors"

MAX_HELD_OUT = 4096


def held_out_count(texts: int) -> int:
    """How many texts are never fitted to: a fifth, and no more than can be compared at once."""
    return min(MAX_HELD_OUT, texts // 5)


def least_texts(embedding_dim: int) -> int:
    """Fewest texts for a fit: two to fit to for each direction, and enough to hold out."""
    return max(5 * MIN_TEXTS, math.ceil(2 * embedding_dim * 5 / 4))


def neighbours_rows(plain: Sequence[Kept], rotated: Sequence[Kept], texts: int) -> list[Neighbours]:
    """What was measured on so many texts, as a card holds it."""
    return [
        Neighbours(
            dimensions=after.dimensions,
            overlap=round(after.overlap, 4),
            overlap_plain=round(before.overlap, 4),
            texts=texts,
        )
        for before, after in zip(plain, rotated, strict=True)
    ]


class VariantPlan:
    """A place for a variant that may be taken.

    Raises:
        FitRefused: the name is none, another model has it, or the base cannot be one.
    """

    def __init__(self, settings: Settings, base: Card, name: str | None, *, force: bool) -> None:
        if base.base is not None:
            raise FitRefused(
                f"{base.name} has a rotation already; fit one to its base {base.base.name}"
            )
        self.name = name or f"{base.name}-matryoshka"
        if not is_card_name(self.name):
            raise FitRefused(f"--name {self.name}: not a model's name")
        self._base = base
        self._settings = settings
        self._folder = settings.installed_models_dir() / self.name
        self._replaced = self._look_for_others(read_registry(*settings.model_folders()), force)

    def _look_for_others(self, registry: Registry, force: bool) -> Card | None:
        """The card that this one takes the place of."""
        for card in registry.cards:
            if self.name in card.aliases:
                raise FitRefused(f"--name {self.name}: is another name of {card.name}")
            if card.name == self.name:
                if card.base is None or card.base.name != self._base.name:
                    raise FitRefused(f"{self.name} is no variant of {self._base.name}; use --name")
                if not force:
                    raise FitRefused(
                        f"{self.name} is there already ({card.folder}); use another --name, or "
                        "--force to put this one in its place"
                    )
                return card
        if self._folder.exists() and not force:
            raise FitRefused(f"{self._folder} is there already; use another --name, or --force")
        return None

    def install(
        self, rotation: Matrix, sizes: Sequence[int], neighbours: Sequence[Neighbours]
    ) -> Card:
        """Write the card and its rotation; returns the card as it is read from there.

        Raises:
            SettingError, OutputFileError: the data folder cannot be made or written.
        """
        try:
            self._settings.make_data_dir()
            with workshop(self._settings.installed_models_dir()) as shop:
                made = shop.new / self.name
                made.mkdir(parents=True)
                self._write(made, rotation, sizes, neighbours)
                card = read_card(made, *self._settings.model_folders())
                load_rotation(card)
                shop.put_in_place([self.name])
        except OSError as error:
            raise OutputFileError(f"{self._folder}: {error.strerror}") from error
        return read_card(self._folder, *self._settings.model_folders())

    def _write(
        self, folder: Path, rotation: Matrix, sizes: Sequence[int], neighbours: Sequence[Neighbours]
    ) -> None:
        content = save({"rotation": rotation})
        (folder / ROTATION_FILE).write_bytes(content)
        pin = FilePin(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        card = self._base.variant(
            {
                "name": self.name,
                "description": f"{self._base.name} turned by a learned orthogonal matrix, so that "
                "its vectors can be cut.",
                "created": datetime.datetime.now(datetime.UTC).date(),
                "aliases": self._replaced.aliases if self._replaced else (),
                "matryoshka": Matryoshka(dimensions=tuple(sizes), rotation=ROTATION_FILE),
                "files": {ROTATION_FILE: pin},
                "neighbours": tuple(neighbours),
                "folder": folder,
            }
        )
        write_card(card, folder, *self._settings.model_folders())
