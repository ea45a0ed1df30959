"""What an imported model is to be: what was wished, what its folder says, what is published of it.

Pure; any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from server.catalog.card import Matryoshka, PoolingMode
from server.catalog.names import Purpose
from server.errors import ImportRefused
from server.importing.families import Family
from server.importing.folder import ModelFolder


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person who imports says beside the folder."""

    name: str | None = None
    matryoshka: tuple[int, ...] = ()
    prompts: dict[Purpose, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    pooling: PoolingMode | None = None
    normalize: bool | None = None
    graph: Literal["own", "published"] | None = None  # None: own if torch is there
    force: bool = False  # keep a model that is not as near to sentence-transformers as it should be
    replace: bool = False  # take the place of an installed model
    origin: tuple[str, str] | None = None  # repository of the hub and commit


def choose_prompts(
    folder: ModelFolder, family: Family | None, wishes: Wishes, report: Callable[[str], None]
) -> dict[Purpose, str]:
    """By the person, else by the folder, else as published for the family."""
    own = {purpose: prompt for purpose, prompt in folder.prompts.items() if prompt}
    chosen = dict(own)
    if not own and family is not None and family.prompts:
        chosen = dict(family.prompts)
        report(f"prompts as published for {family.source}")
    chosen |= wishes.prompts
    return {purpose: prompt for purpose, prompt in chosen.items() if prompt}


def choose_sizes(
    embedding_dim: int, family: Family | None, wishes: Wishes, report: Callable[[str], None]
) -> Matryoshka | None:
    """Sizes to which vectors may be cut, by the person, else as published; None if none are known.

    Raises:
        ImportRefused: a size that was wished for is not one of the model's.
    """
    sizes: Sequence[int] = wishes.matryoshka
    if not sizes and family is not None and family.dimensions:
        sizes = [size for size in family.dimensions if size < embedding_dim]
        report(f"Matryoshka sizes as published for {family.source}")
    if not sizes:
        return None
    wrong = [size for size in sizes if not 1 <= size <= embedding_dim]
    if wrong:
        raise ImportRefused(
            f"--matryoshka: {wrong[0]} is not between 1 and {embedding_dim}, the model's size"
        )
    dimensions = tuple(sorted({embedding_dim, *sizes}, reverse=True))
    if family is not None and family.layer_norm:
        return Matryoshka(dimensions=dimensions, layer_norm=True)
    return Matryoshka(dimensions=dimensions)
