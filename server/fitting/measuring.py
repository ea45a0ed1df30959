"""What each size of a model's vectors keeps, measured on somebody's texts.

Knows no models, only their vectors. Any thread may call.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from server.errors import SettingError, TextFileError, unusable
from server.inference.neighbours import (
    MAX_QUERIES,
    Matrix,
    nearest,
    overlap,
    spearman,
)
from server.inference.pooling import normalize
from server.inference.vector_form import VectorForm

MIN_TEXTS = 50  # with fewer, ten neighbours are a large part of all there is
LOW_PERCENTILE = 10


class Kept(NamedTuple):
    """What one size keeps of the ten nearest neighbours at full size, as shares (0 to 1)."""

    dimensions: int
    overlap: float  # mean over texts
    overlap_p10: float  # a tenth of the texts keep no more than this
    spearman: float | None  # times 100, of the scored pairs if there are any

    @property
    def bytes_per_million(self) -> int:
        """Of a million vectors in float32."""
        return 4_000_000 * self.dimensions


class ScoredPairs(NamedTuple):
    """Pairs of texts with how alike people found them."""

    left: list[str]
    right: list[str]
    scores: list[float]


class PairVectors(NamedTuple):
    """The same, embedded: (pairs, embedding_dim), float32."""

    left: Matrix
    right: Matrix
    scores: list[float]


def read_scored_pairs(file: Path) -> ScoredPairs:
    """A CSV file of text, text, score without a header line; further columns are ignored.

    Raises:
        TextFileError: it cannot be read, or a row is something else; names it.
    """
    pairs = ScoredPairs([], [], [])
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(csv.reader(lines), start=1):
                try:
                    left, right, score = row[0], row[1], float(row[2])
                except (IndexError, ValueError):
                    raise TextFileError(f"{file} row {number}: is not text,text,score") from None
                if not left.strip() or not right.strip() or not np.isfinite(score):
                    raise TextFileError(
                        f"{file} row {number}: a text is blank or a score no number"
                    )
                pairs.left.append(left)
                pairs.right.append(right)
                pairs.scores.append(score)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TextFileError(unusable(str(file), error)) from error
    if len(pairs.scores) < 3 or len(set(pairs.scores)) == 1:
        raise TextFileError(f"{file}: a correlation needs three pairs with unlike scores")
    return pairs


def measure(
    vectors: Matrix,
    form: VectorForm,
    rotation: Matrix | None,
    sizes: Sequence[int],
    pairs: PairVectors | None,
) -> list[Kept]:
    """What each size keeps.

    Args:
        vectors: (texts, embedding_dim), float32, as the encoder gives them, in random order: the
            neighbours of the first MAX_QUERIES of them are looked for, among all.
        form, rotation: how a model shapes them, at whatever size.
    """

    def shaped(native: Matrix, size: int) -> Matrix:
        return normalize(replace(form, dimensions=size).shape(native, rotation))

    queries = min(len(vectors), MAX_QUERIES)
    full = nearest(normalize(vectors), queries)
    rows = []
    for size in sizes:
        shares = overlap(full, nearest(shaped(vectors, size), queries))
        low = float(np.percentile(shares, LOW_PERCENTILE))
        correlation = None
        if pairs:
            left, right = (shaped(side, size) for side in (pairs.left, pairs.right))
            correlation = spearman(left, right, pairs.scores)
        rows.append(Kept(size, float(shares.mean()), low, correlation))
    return rows


def parse_sizes(given: str, embedding_dim: int) -> tuple[int, ...]:
    """Sizes written with commas, the native size in front, largest first.

    Raises:
        SettingError: one is no number from 1 to the native size.
    """
    sizes = {embedding_dim}
    for part in given.split(","):
        try:
            size = int(part)
        except ValueError:
            size = 0
        if not 1 <= size <= embedding_dim:
            raise SettingError(
                f"--dimensions {given}: {part.strip()!r} is no size from 1 to {embedding_dim}"
            )
        sizes.add(size)
    return tuple(sorted(sizes, reverse=True))
