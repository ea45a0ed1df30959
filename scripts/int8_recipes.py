"""Measure every int8 recipe that an import could give a model, on its texts and on others.

    python -m scripts.int8_recipes all-MiniLM-L6-v2 --text lines.txt --stsb stsb-dev.csv

Prints a table: share of the time of products in bfloat16, then what the vectors keep of those in
float32 on each set of texts. `--stsb` takes pairs that people scored, and adds Spearman's correlation
times 100; their licence keeps them out of here. Needs the extra `openvino`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from scripts.reference import table
from server.catalog.card import GRAPH_FILE, Card
from server.fitting.measuring import ScoredPairs, read_scored_pairs
from server.importing.cpu_proof import MEASURED_ON, TEXTS, embed, kept_of
from server.importing.int8_choice import list_recipes, relative_time
from server.inference.loader import load_encoder
from server.inference.neighbours import spearman
from server.inference.openvino_int8 import stored_matrices
from server.inference.pooling import normalize
from server.offline.embedder import find_card
from server.settings import Settings


@dataclass(frozen=True)
class Sample:
    """Distinct texts, and pairs of them that people scored, if there are any."""

    name: str
    texts: list[str]
    pairs: ScoredPairs | None = None

    def spearman(self, vectors: NDArray[np.float32]) -> float | None:
        """Of the pairs' cosines with their scores, times 100."""
        if self.pairs is None:
            return None
        place = {text: row for row, text in enumerate(self.texts)}
        sides = [[place[text] for text in side] for side in (self.pairs.left, self.pairs.right)]
        left, right = (normalize(vectors[rows]) for rows in sides)
        return spearman(left, right, self.pairs.scores)


def main(
    model: str,
    text: Annotated[Path | None, typer.Option(help="Texts, one a line.")] = None,
    stsb: Annotated[Path | None, typer.Option(help="CSV of text, text, score.")] = None,
) -> None:
    """Measure every int8 recipe of a model, and bfloat16."""
    card = find_card(Settings(), model).encoder_card
    samples = [Sample(MEASURED_ON, list(TEXTS))]
    if text:
        lines = text.read_text(encoding="utf-8").splitlines()
        samples.append(Sample(text.name, list(dict.fromkeys(filter(str.strip, lines)))))
    if stsb:
        pairs = read_scored_pairs(stsb)
        samples.append(Sample(stsb.name, list(dict.fromkeys([*pairs.left, *pairs.right])), pairs))
    encoder = load_encoder(card)
    exact = [embed(card, encoder, sample.texts) for sample in samples]
    matrices = stored_matrices(card.path(GRAPH_FILE))
    ways: list[tuple[str, float, Card]] = [("bfloat16", 1.0, card.computed_in("bfloat16"))]
    for recipe in list_recipes(matrices):
        computed = card.changed(int8=recipe).computed_in("int8")
        ways.append((recipe.words, relative_time(recipe, matrices), computed))
    rows = []
    for words, time, computed in ways:
        row = [words, f"{time:.2f}"]
        for sample, full in zip(samples, exact, strict=True):
            found = embed(computed, encoder, sample.texts)
            kept, correlation = kept_of(full, found), sample.spearman(found)
            told = f"{kept.mean_cosine:.5f} {kept.min_cosine:.5f} {kept.neighbours_kept:.2%}"
            row.append(told if correlation is None else f"{told} {correlation:.2f}")
        rows.append(row)
        typer.echo(" | ".join(row), err=True)
    full_scores = [sample.spearman(full) for sample, full in zip(samples, exact, strict=True)]
    heads = [
        f"{one.name} ({len(one.texts):,}; {score or '-'})"
        for one, score in zip(samples, full_scores, strict=True)
    ]
    typer.echo(table(["recipe", "time", *heads], rows))


if __name__ == "__main__":
    typer.run(main)
