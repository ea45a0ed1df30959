"""What an imported model keeps in the lower precisions of a CPU, and the int8 recipe it gets.

Measured with the backend that serves, against the vectors in float32 of texts without a prompt. Any
thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import GRAPH_FILE, Card
from server.catalog.cpu_precision import CpuDtype, CpuPrecision
from server.catalog.int8_recipe import Int8Recipe
from server.errors import SettingError, first_line
from server.importing.int8_choice import FLOORS, NOTHING, Kept, Tried, choose, list_recipes
from server.importing.neighbour_texts import NEIGHBOUR_TEXTS
from server.importing.proof_texts import HALF_PRECISION_TEXTS
from server.inference import direct
from server.inference.agreement import agreement_of
from server.inference.backend import LoadOptions
from server.inference.backend_kinds import CPU, choose_backend
from server.inference.cpu_cores import usable_cores
from server.inference.loader import Encoder
from server.inference.neighbours import shared_neighbours
from server.inference.placement import find_placement
from server.inference.pooling import normalize

# With the reference texts, so that no start is refused by what was measured here.
TEXTS = (*HALF_PRECISION_TEXTS, *NEIGHBOUR_TEXTS)
MEASURED_ON = "texts of the import"


def prove_on_cpu(card: Card, encoder: Encoder, report: Callable[[str], None]) -> Card:
    """The card with its int8 recipe and what bfloat16 and int8 keep, if this machine has them.

    Args:
        card: of files that are all in place.
        encoder: what computes it in float32.
    """
    there = _find_dtypes(report)
    if not there:
        return card
    try:
        exact = direct.embed_texts(encoder, TEXTS)
        if "bfloat16" in there:
            kept = kept_of(exact, embed(card.computed_in("bfloat16"), encoder, TEXTS))
            report(f"on a CPU in bfloat16: {kept} ({len(TEXTS)} texts)")
            card = card.changed(cpu_precision=_precisions("bfloat16", kept))
        return _choose_int8(card, encoder, exact, report) if "int8" in there else card
    except Exception as error:  # the model is whole without it
        report(f"warning: lower precision on a CPU: not tried further: {first_line(error)}")
        return card


def kept_of(exact: NDArray[np.float32], found: NDArray[np.float32]) -> Kept:
    """What vectors keep of those in float32; both (texts, embedding_dim), more than NEIGHBOURS."""
    agreement = agreement_of(exact, found)
    shares = shared_neighbours(normalize(exact), normalize(found), np.arange(len(exact)))
    return Kept(agreement.mean_cosine, agreement.min_cosine, float(shares.mean(dtype=np.float64)))


def embed(card: Card, encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors (texts, embedding_dim), float32, in the card's numbers and by its recipe.

    Args:
        encoder: whose tokenizer is used.

    Raises:
        ModelLoadError: they cannot be computed.
    """
    choice = choose_backend(card, (CPU,), card.dtype)
    options = LoadOptions(wide_threads=usable_cores())  # which heavy models compute with
    backends, _ = choice.kind.load(choice.card, choice.devices, options)
    return direct.embed_texts(Encoder(encoder.tokenizer, backends, encoder.embedding_dim), texts)


def _find_dtypes(report: Callable[[str], None]) -> tuple[CpuDtype, ...]:
    """What can be tried here; says what one must have for the rest."""
    there: list[CpuDtype] = []
    lacks = []
    for dtype in get_args(CpuDtype):
        try:
            find_placement(CPU, dtype)
            there.append(dtype)
        except SettingError as error:
            lacks.append(error.message.removeprefix("setting dtype: "))
    if lacks:
        report(f"lower precision on a CPU: not tried: {lacks[-1]}")
    return tuple(there)


def _choose_int8(
    card: Card, encoder: Encoder, exact: NDArray[np.float32], report: Callable[[str], None]
) -> Card:
    from server.inference.openvino_int8 import stored_matrices

    def try_recipe(recipe: Int8Recipe) -> Kept:
        try:
            found = embed(card.changed(int8=recipe).computed_in("int8"), encoder, TEXTS)
            kept = kept_of(exact, found)
        except Exception as error:  # another recipe may do
            report(f"warning: on a CPU in int8, {recipe.words}: failed: {first_line(error)}")
            return NOTHING
        report(f"on a CPU in int8, {recipe.words}: {kept}")
        return kept

    chosen = choose(list_recipes(stored_matrices(card.path(GRAPH_FILE))), try_recipe)
    if chosen is None:
        report("on a CPU: int8 is not offered: the graph has no matrix of whole groups")
        return card.changed(int8=Int8Recipe(offered=False))
    _tell(chosen, report)
    precision = (*card.cpu_precision, *_precisions("int8", chosen.kept))
    return card.changed(int8=chosen.recipe, cpu_precision=precision)


def _tell(chosen: Tried, report: Callable[[str], None]) -> None:
    recipe = chosen.recipe
    if recipe.offered:
        report(
            f"on a CPU: int8 with {recipe.words}; a server asks for a cosine of {recipe.min_cosine}"
        )
    else:
        report(f"on a CPU: int8 is not offered: no recipe keeps enough (at least {FLOORS})")


def _precisions(dtype: CpuDtype, kept: Kept) -> tuple[CpuPrecision, ...]:
    """What a card says of it: nothing of figures that are not finite."""
    if not kept.is_finite:
        return ()
    told = CpuPrecision(
        dtype=dtype,
        measured_on=MEASURED_ON,
        texts=len(TEXTS),
        mean_cosine=round(kept.mean_cosine, 7),
        min_cosine=round(kept.min_cosine, 7),
        neighbours_kept=round(kept.neighbours_kept, 4),
    )
    return (told,)
