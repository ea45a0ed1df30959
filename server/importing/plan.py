"""What an imported model is to be: what was wished, what its folder says, what is published of it.

Pure; any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from server.catalog.card import Matryoshka, PoolingMode
from server.catalog.names import Purpose
from server.errors import ImportRefused
from server.importing.families import Family
from server.importing.folder import PROMPTS_FILE, ModelFolder
from server.importing.told import Told, quoted, tell


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
    """By the person, else by the folder, else as published for the family; each is told."""
    chosen = {purpose: (prompt, PROMPTS_FILE) for purpose, prompt in folder.prompts.items()}
    if family is not None and not any(folder.prompts.values()):
        chosen = {purpose: (prompt, family.cited) for purpose, prompt in family.prompts.items()}
    for purpose, prompt in wishes.prompts.items():
        chosen[purpose] = (prompt, f"--{purpose}-prompt")
    facts = [Told(f"prompt {purpose}", quoted(text), by) for purpose, (text, by) in chosen.items()]
    tell(facts or [Told("prompts", "none", f"{PROMPTS_FILE} names none")], report)
    return {purpose: prompt for purpose, (prompt, _) in chosen.items() if prompt}


def choose_default_prompt(
    folder: ModelFolder, prompts: Mapping[Purpose, str], report: Callable[[str], None]
) -> Purpose | None:
    """Which of the chosen prompts stands before texts that come without a purpose; it is told."""
    default = folder.default_prompt if folder.default_prompt in prompts else None
    silent = "" if folder.default_prompt else " names none"
    tell([Told("default prompt", default or "none", f"{PROMPTS_FILE}{silent}")], report)
    return default


def choose_sizes(
    embedding_dim: int, family: Family | None, wishes: Wishes, report: Callable[[str], None]
) -> Matryoshka | None:
    """Sizes to which vectors may be cut, by the person, else as published; None if none are known.

    Raises:
        ImportRefused: a size that was wished for is not one of the model's.
    """
    sizes, source = wishes.matryoshka, "--matryoshka"
    if not sizes and family is not None and family.dimensions:
        sizes = tuple(size for size in family.dimensions if size < embedding_dim)
        source = family.cited
    if not sizes:
        tell([Told("Matryoshka sizes", "none", "none are known; --matryoshka says them")], report)
        return None
    wrong = [size for size in sizes if not 1 <= size <= embedding_dim]
    if wrong:
        raise ImportRefused(
            f"--matryoshka: {wrong[0]} is not between 1 and {embedding_dim}, the model's size"
        )
    dimensions = tuple(sorted({embedding_dim, *sizes}, reverse=True))
    facts = [Told("Matryoshka sizes", ", ".join(map(str, dimensions)), source)]
    layer_norm = family is not None and family.layer_norm
    if family is not None and layer_norm:
        facts.append(Told("layer norm before the cut", "yes", family.cited))
    tell(facts, report)
    return Matryoshka(dimensions=dimensions, layer_norm=layer_norm)
