"""Measure bfloat16, and every int8 recipe that an import could give a model.

    python -m scripts.int8_recipes all-MiniLM-L6-v2 --text lines.txt --stsb stsb-dev.csv

A row of the table: time of the products against bfloat16, then for each set of texts mean and least
cosine to float32 and the share of ten nearest neighbours kept. `--stsb` takes pairs that people scored,
whose licence keeps them out of here, and adds Spearman's correlation times 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from scripts.reference import table
from server.catalog.card import GRAPH_FILE
from server.fitting.measuring import ScoredPairs, read_scored_pairs
from server.importing.cpu_proof import MEASURED_ON, TEXTS, embed, kept_of
from server.importing.int8_choice import list_recipes, relative_time
from server.inference.loader import load_encoder
from server.inference.neighbours import spearman
from server.inference.openvino_int8 import stored_matrices
from server.inference.pooling import normalize
from server.offline.embedder import find_card, offline_opener
from server.settings import Settings


def correlation(texts: Sequence[str], vectors: NDArray[np.float32], pairs: ScoredPairs) -> float:
    """Spearman's, times 100, of the pairs' cosines with their scores."""
    rows = {text: row for row, text in enumerate(texts)}
    left, right = (normalize(vectors[[rows[text] for text in side]]) for side in pairs[:2])
    return spearman(left, right, pairs.scores)


def main(
    model: str,
    text: Annotated[list[Path] | None, typer.Option(help="Texts, one a line.")] = None,
    stsb: Annotated[Path | None, typer.Option(help="CSV of text, text, score.")] = None,
) -> None:
    sets = {MEASURED_ON: list(TEXTS)}
    sets |= {one.name: list(dict.fromkeys(one.read_text().splitlines())) for one in text or []}
    pairs = read_scored_pairs(stsb) if stsb else None
    if stsb and pairs:
        sets[stsb.name] = list(dict.fromkeys([*pairs.left, *pairs.right]))
    settings = Settings()
    card = find_card(settings, offline_opener(settings), model).encoder_card
    encoder = load_encoder(card)
    matrices = stored_matrices(card.path(GRAPH_FILE))
    ways = [("float32", "", card), ("bfloat16", "1.00", card.computed_in("bfloat16"))]
    for recipe in list_recipes(matrices):
        computed = card.changed(int8=recipe).computed_in("int8")
        ways.append((recipe.words, f"{relative_time(recipe, matrices):.2f}", computed))
    rows: list[list[str]] = []
    exact: dict[str, NDArray[np.float32]] = {}
    for words, time, computed in ways:
        row = [words, time]
        for name, texts in sets.items():
            found = embed(computed, encoder, texts)
            kept = kept_of(exact.setdefault(name, found), found)
            figures = [f"{kept.mean_cosine:.5f} {kept.min_cosine:.5f} {kept.neighbours_kept:.2%}"]
            if pairs and name == list(sets)[-1]:
                figures.append(f"{correlation(texts, found, pairs):.2f}")
            row.append(" ".join(figures))
        rows.append(row)
        typer.echo(" | ".join(row), err=True)
    typer.echo(table(["recipe", "time", *(f"{name}: {len(sets[name]):,}" for name in sets)], rows))


if __name__ == "__main__":
    typer.run(main)
