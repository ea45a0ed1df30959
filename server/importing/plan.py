"""What an imported model is to be: what was wished, what its folder says, what is published of it.

Pure; any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from server.catalog.card import Matryoshka, PoolingMode
from server.errors import ImportRefused
from server.importing.families import Family
from server.importing.told import Told, tell


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person who imports says beside the folder."""

    name: str | None = None
    matryoshka: tuple[int, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)  # by name
    aliases: tuple[str, ...] = ()
    pooling: PoolingMode | None = None
    normalize: bool | None = None
    graph: Literal["own", "published"] | None = None  # None: own if torch is there
    onnx: str | None = None  # which of the publisher's graphs, from the folder
    max_input_tokens: int | None = None
    base: Path | None = None  # folder of the model that an adapter was trained on
    force: bool = False  # keep a model that is not as near to sentence-transformers as it should be
    replace: bool = False  # take the place of an installed model
    origin: tuple[str, str] | None = None  # repository of the hub and commit


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
