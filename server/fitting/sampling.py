"""A model's vectors of somebody's texts, for what is measured or learned from them.

Blocks while it computes; draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from server.catalog.card import Card
from server.errors import TextFileError
from server.fitting.measuring import PairVectors, read_scored_pairs
from server.fitting.rotation import SEED
from server.inference.neighbours import Matrix
from server.inference.opening import Opener
from server.offline.embed_windows import ShowProgress, embed_sample
from server.offline.embedder import Embedder
from server.offline.texts import sample_texts
from server.settings import Settings


class FittingProgress(Protocol):
    """Shows how far the long steps are, each while its context lasts."""

    def embedding(self, label: str, texts: int) -> AbstractContextManager[ShowProgress]:
        """So many texts are about to be embedded."""
        ...

    def steps(self, label: str, count: int) -> AbstractContextManager[Callable[[], None]]:
        """What is given is called after each of `count` steps."""
        ...


@dataclass(frozen=True, slots=True)
class SampleWishes:
    """Which texts are to be embedded, and how."""

    files: list[Path]  # see TextReader
    max_texts: int  # of more so many are drawn
    field: str = "text"
    input_type: str | None = None
    scored_pairs: Path | None = None  # see `read_scored_pairs`


class Sample(NamedTuple):
    """Distinct texts in random order, embedded."""

    vectors: Matrix  # (texts, embedding_dim), as the encoder gives them
    pairs: PairVectors | None
    texts_read: int
    rotation: Matrix | None  # the model's


def take_sample(
    settings: Settings,
    opener: Opener,
    card: Card,
    wishes: SampleWishes,
    progress: FittingProgress,
    *,
    least_texts: int,
) -> Sample:
    """Read the texts, then the model, and embed.

    Raises:
        InvalidRequest: the model has no such prompt.
        TextFileError: a file cannot be read, or there are fewer than `least_texts` distinct texts.
        ModelFileError, ModelLoadError: the model cannot be used.
    """
    prompt = card.prompt_table.text(wishes.input_type)
    scored = read_scored_pairs(wishes.scored_pairs) if wishes.scored_pairs else None
    texts, texts_read = sample_texts(
        wishes.files, field=wishes.field, most=wishes.max_texts, seed=SEED
    )
    if len(texts) < least_texts:
        raise TextFileError(
            f"--text: {len(texts):,} distinct texts, at least {least_texts:,} are needed"
        )
    with Embedder.load(card, opener, settings) as embedder:
        with progress.embedding("embedding", len(texts)) as show:
            vectors = embed_sample(embedder, texts, prompt=prompt, show=show)
        pairs = None
        if scored:
            both = [*scored.left, *scored.right]
            with progress.embedding("scored pairs", len(both)) as show:
                sides = embed_sample(embedder, both, prompt=prompt, show=show)
            middle = len(scored.left)
            pairs = PairVectors(sides[:middle], sides[middle:], scored.scores)
        return Sample(vectors, pairs, texts_read, embedder.rotation)
