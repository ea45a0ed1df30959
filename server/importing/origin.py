"""What the surroundings of a folder tell of its model: where it came from, and under what names.

Reads its path and its README. Any thread may call.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from server.catalog.card import TOKENIZER_FILE, Card
from server.catalog.sources import HubSource
from server.catalog.verify import sha256_of
from server.importing.folder import ModelFolder
from server.importing.plan import Wishes

_HUB_CACHE = re.compile(r"models--(?P<organisation>.+?)--(?P<name>.+)")


def given_name(path: Path) -> str:
    """The folder's name, or the model's where it lies in the hub client's cache."""
    cached = _hub_cache(path)
    return cached["name"] if cached else path.resolve().name


def own_names(path: Path, wishes: Wishes) -> tuple[str, ...]:
    """The model's names as those say it who hand it over: a person, the hub, the folder."""
    cached = _hub_cache(path)
    repository = wishes.origin[0] if wishes.origin else cached["name"] if cached else ""
    return (wishes.name or "", repository, path.resolve().name)


def known_names(folder: ModelFolder, name: str, wishes: Wishes) -> tuple[str, ...]:
    """What the model may be known by, whatever clients are to call it here.

    The last is the model that it was trained from, if it is not that one itself.
    """
    return (
        name,
        *own_names(folder.given_path, wishes),
        str(folder.config.get("_name_or_path", "")),
    )


def description(folder: ModelFolder, wishes: Wishes) -> str:
    """One sentence for people."""
    return f"Imported from {'@'.join(wishes.origin or ()) or folder.given_path.resolve().name}."


def license_name(folder: ModelFolder) -> str:
    """The license that its README names, or `unknown`."""
    readme = folder.given_path / "README.md"
    if readme.is_file():
        from huggingface_hub import metadata_load

        # What people write there is not always YAML, and decides nothing.
        with contextlib.suppress(Exception):
            found = (metadata_load(readme) or {}).get("license")
            if isinstance(found, str):
                return found
    return "unknown"


def publisher(folder: ModelFolder, wishes: Wishes) -> str:
    """Who published it, as far as its origin tells."""
    if wishes.origin is not None:
        return wishes.origin[0].split("/")[0]
    cached = _hub_cache(folder.given_path)
    return cached["organisation"] if cached else "imported"


def hub_source(folder: ModelFolder, card: Card, origin: tuple[str, str]) -> HubSource:
    """Where the card's files can be had again.

    Args:
        origin: repository of the hub and commit.
    """
    repository, commit = origin
    # Only what lies in the repository byte for byte under the same name.
    same = list(folder.weights)
    tokenizer = folder.path / TOKENIZER_FILE
    if tokenizer.is_file() and sha256_of(tokenizer) == card.files[TOKENIZER_FILE].sha256:
        same.append(TOKENIZER_FILE)  # else it was made or changed here
    return HubSource(
        kind="hub",
        repository=repository,
        revision=commit,
        files=tuple(name for name in same if name in card.files),
    )


def _hub_cache(path: Path) -> re.Match[str] | None:
    """Organisation and name of a folder inside the hub client's cache."""
    parts = path.resolve().parts
    return next(filter(None, map(_HUB_CACHE.fullmatch, parts)), None)
