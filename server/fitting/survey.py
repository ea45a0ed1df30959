"""What each size of a model's vectors keeps on somebody's texts, as the command `dimensions` does it.

Blocks while it computes; draws and prints nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from server.catalog.card import Card
from server.fitting.measuring import MIN_TEXTS, Kept, measure, parse_sizes
from server.fitting.rotation import recommended_sizes
from server.fitting.sampling import FittingProgress, SampleWishes, take_sample
from server.inference.vector_form import VectorForm
from server.offline.embedder import find_card, offline_opener
from server.settings import Settings


class Survey(NamedTuple):
    """What was found."""

    card: Card
    rows: list[Kept]  # largest size first
    texts: int
    texts_read: int
    fingerprint: str  # of the vectors


def survey_sizes(
    settings: Settings,
    model: str,
    wishes: SampleWishes,
    progress: FittingProgress,
    *,
    sizes: str | None = None,
) -> Survey:
    """Measure what each size keeps.

    Args:
        sizes: written with commas; None: those that the card recommends, else powers of two.

    Raises:
        SettingError: the model is not there, or a size is none.
        InvalidRequest: the model has no such prompt.
        TextFileError: a file cannot be read, or there are too few texts.
        CardError, ModelFileError, ModelLoadError: the model cannot be used.
    """
    settings.check_data_dir()
    opener = offline_opener(settings)
    card = find_card(settings, opener, model)
    recommended = card.matryoshka.dimensions if card.matryoshka else ()
    wanted = sizes or ",".join(map(str, recommended or recommended_sizes(card.embedding_dim)))
    chosen = parse_sizes(wanted, card.embedding_dim)
    sample = take_sample(settings, opener, card, wishes, progress, least_texts=MIN_TEXTS)
    rows = measure(sample.vectors, VectorForm.of(card), sample.rotation, chosen, sample.pairs)
    fingerprint = card.prompt_table.fingerprint_for(wishes.input_type)
    return Survey(card, rows, len(sample.vectors), sample.texts_read, fingerprint)
