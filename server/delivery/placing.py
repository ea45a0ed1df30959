"""A model's folder appears in its place whole, and for good, or not at all.

It is made in a workshop: a hidden folder among the models, which no search for models looks into.
From there it is renamed. Whenever the process or the machine dies, a place has the old model or
the new one; where the file system cannot exchange two folders, the next one to open a workshop
brings the old one back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from server.catalog.card import CARD_FILE
from server.delivery.exchange import exchange
from server.delivery.locking import clear, scratch_folder
from server.delivery.syncing import sync_folder, sync_tree

_PREFIX = ".new-"


class Workshop:
    """Where models are made until they are whole: `new / NAME` is what NAME is to become."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.new = folder / "new"
        self._old = folder / "old"
        self._models = models

    def put_in_place(self, names: Sequence[str]) -> None:
        """Have these models appear, in this order, each in the place of another of its name.

        An error undoes it for all of them. Afterwards they survive a crash of the machine.
        """
        for name in names:
            sync_tree(self.new / name)
        begun: list[tuple[str, int]] = []
        parents = {(self._models / name).parent for name in names}
        try:
            for name in names:
                place, old = self._models / name, self._old / name
                place.parent.mkdir(exist_ok=True)
                old.parent.mkdir(parents=True, exist_ok=True)
                begun.append((name, (self.new / name).stat().st_ino))
                _put(self.new / name, old, place)
            for folder in {self._models.parent, self._models, *parents}:
                sync_folder(folder)
        except BaseException:
            for name, inode in reversed(begun):
                _take_back(inode, self.new / name, self._old / name, self._models / name)
            for folder in parents - {self._models}:
                with contextlib.suppress(OSError):  # it holds other models, or was never made
                    folder.rmdir()
            raise


@contextlib.contextmanager
def workshop(models: Path) -> Iterator[Workshop]:
    """A new workshop among these models, gone afterwards; those of killed runs are cleared first.

    Args:
        models: the folder of models; made if need be.
    """
    for left in workshops(models):
        with contextlib.suppress(OSError):  # say another user's; `models clean` tells of it
            clear_workshop(left)
    with scratch_folder(models, _PREFIX, partial(_put_back, models)) as folder:
        made = Workshop(folder, models)
        made.new.mkdir()
        yield made


def workshops(models: Path) -> list[Path]:
    """The workshops that there are among these models, in use or not."""
    return sorted(models.glob(f"{_PREFIX}*"))


def clear_workshop(folder: Path) -> int | None:
    """Put back models that were taken away and not replaced, and remove the rest; see `clear`."""
    return clear(folder, partial(_put_back, folder.parent))


def _put_back(models: Path, folder: Path) -> None:
    old = folder / "old"
    for card in (*old.glob(f"*/{CARD_FILE}"), *old.glob(f"*/*/{CARD_FILE}")):
        place = models / card.parent.relative_to(old)
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            card.parent.rename(place)


def _put(new: Path, old: Path, place: Path) -> None:
    if not place.exists():
        new.rename(place)
    elif not exchange(new, place):
        place.rename(old)  # `_put_back` mends it, should this process die here
        new.rename(place)


def _take_back(inode: int, new: Path, old: Path, place: Path) -> None:
    """Undo `_put` from wherever it was interrupted; the inode is that of the new folder."""
    if place.exists() and place.stat().st_ino == inode:
        if new.exists():
            exchange(new, place)
        else:
            place.rename(new)
    if old.exists():
        old.rename(place)
