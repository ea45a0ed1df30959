"""A rotation fitted to somebody's texts, as the command `models fit-rotation` does it.

Blocks while it computes; draws and prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.catalog.card import Card
from server.errors import FitRefused
from server.fitting.measuring import Kept, measure, parse_sizes
from server.fitting.rotation import STEPS, fit, protected_sizes, recommended_sizes
from server.fitting.sampling import FittingProgress, SampleWishes, take_sample
from server.fitting.variant import VariantPlan, held_out_count, least_texts, neighbours_rows
from server.inference.neighbours import Matrix
from server.inference.pooling import normalize
from server.inference.vector_form import VectorForm
from server.offline.embedder import find_card, offline_opener
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class RotationFit:
    """A rotation and what it keeps, by size, largest first; nothing is written yet."""

    rotation: Matrix  # (embedding_dim, embedding_dim)
    plain: Sequence[Kept]  # on the texts held out, cut without it
    rotated: Sequence[Kept]  # on the same texts, with it
    fitted: int  # texts that it was fitted to
    held_out: int
    texts_read: int
    plan: VariantPlan

    def install(self) -> Card:
        """Write the variant; returns its card.

        Raises:
            FitRefused: the rotation finds no more neighbours, over all sizes, than cutting.
            SettingError, OutputFileError: the data folder cannot be made or written.
        """
        # The native size keeps all either way.
        if sum(row.overlap for row in self.rotated[1:]) <= sum(
            row.overlap for row in self.plain[1:]
        ):
            raise FitRefused(
                "the rotation keeps no more neighbours than plain truncation on texts held out; "
                "nothing was written"
            )
        sizes = [row.dimensions for row in self.plain]
        rows = neighbours_rows(self.plain, self.rotated, self.held_out)
        return self.plan.install(self.rotation, sizes, rows)


def fit_rotation(
    settings: Settings,
    model: str,
    wishes: SampleWishes,
    progress: FittingProgress,
    *,
    new_name: str | None = None,
    sizes: str | None = None,
    force: bool = False,
) -> RotationFit:
    """Fit a rotation to most of the texts, and measure it on the others.

    Args:
        new_name: of the variant; None: the model's with `-matryoshka`.
        sizes: to recommend, written with commas; None: powers of two.
        force: take the place of a variant that has the name.

    Raises:
        SettingError: the model is not there, or a size is none.
        FitRefused: the variant cannot have its name, or the model cannot be its base.
        TextFileError: a file cannot be read, or there are too few texts.
        CardError, ModelFileError, ModelLoadError: the model cannot be used.
    """
    opener = offline_opener(settings)
    card = find_card(settings, opener, model)
    plan = VariantPlan(settings, card, new_name, force=force)
    native = card.embedding_dim
    chosen = parse_sizes(sizes or ",".join(map(str, recommended_sizes(native))), native)
    least = least_texts(native)
    sample = take_sample(settings, opener, card, wishes, progress, least_texts=least)
    held_out = sample.vectors[: held_out_count(len(sample.vectors))]
    fitted = sample.vectors[len(held_out) :]
    with progress.steps("fitting", STEPS) as step:
        rotation = fit(
            normalize(fitted), protected_sizes(native, chosen), steps=STEPS, after_step=step
        )
    plain = measure(held_out, VectorForm.of(card), sample.rotation, chosen, sample.pairs)
    rotated = measure(held_out, VectorForm(native), rotation, chosen, sample.pairs)
    return RotationFit(
        rotation, plain, rotated, len(fitted), len(held_out), sample.texts_read, plan
    )
