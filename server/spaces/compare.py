"""Two sides compared on somebody's texts, as the command `space compare` does it.

Blocks while it computes; draws and prints nothing. Holds both sides' vectors, and once more those of
distinct texts at length 1: 16 bytes a text and dimension at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import InferenceFailed, TextFileError
from server.fitting.measuring import MIN_TEXTS
from server.fitting.rotation import SEED
from server.fitting.sampling import FittingProgress
from server.inference.agreement import Agreement, agreement_of
from server.inference.neighbours import MAX_QUERIES, shared_neighbours
from server.inference.pooling import normalize
from server.spaces.side import Side, SideFacts
from server.spaces.text_lines import TextLine, read_text_lines
from server.spaces.verdict import Verdict, judge

_BLOCK_ROWS = 256


@dataclass(frozen=True, slots=True)
class TextWishes:
    """On which texts sides are compared."""

    files: list[Path]  # see TextReader
    max_texts: int  # of more so many are drawn
    field: str = "text"
    skip_blank: bool = False


class SharedNeighbours(NamedTuple):
    """How many of their ten nearest neighbours texts have on both sides, as shares (0 to 1)."""

    queries: int  # texts whose neighbours were looked for, among all distinct ones
    mean: float
    least: float
    least_at: str  # the first of the texts with the least share


@dataclass(frozen=True, slots=True)
class SpaceComparison:
    """What was found."""

    left: SideFacts
    right: SideFacts
    texts_read: int
    texts: int
    distinct_texts: int
    agreement: Agreement | None  # None: the sizes differ
    worst_at: str | None  # the text whose cosine is least
    neighbours: SharedNeighbours
    verdict: Verdict


def compare_spaces(
    left: Side, right: Side, wishes: TextWishes, progress: FittingProgress
) -> SpaceComparison:
    """Embed the texts with both sides, one after the other, and compare.

    Neighbours are looked for among distinct texts; of many texts SEED draws those that are asked
    for.

    Raises:
        TextFileError: a file cannot be read, a text cannot be embedded, or there are fewer than
            MIN_TEXTS distinct texts: of hardly more than ten all are neighbours on any side.
        InferenceFailed: a side's vector has no direction.
        RemoteServerError, ModelFileError, ModelLoadError: a side cannot be used.
    """
    lines, texts_read = read_text_lines(
        wishes.files,
        field=wishes.field,
        skip_blank=wishes.skip_blank,
        most=wishes.max_texts,
        seed=SEED,
    )
    distinct = _distinct(lines)
    if len(distinct) < MIN_TEXTS:
        drawn = f" of the {len(lines):,} that --max-texts allows" if len(lines) < texts_read else ""
        raise TextFileError(
            f"--text: {len(distinct):,} distinct texts{drawn}, at least {MIN_TEXTS} are needed"
        )
    (ours, left_facts), (theirs, right_facts) = (
        _embed(side, lines, progress) for side in (left, right)
    )
    agreement = agreement_of(ours, theirs) if ours.shape == theirs.shape else None
    neighbours = _shared(ours, theirs, distinct, lines)
    return SpaceComparison(
        left=left_facts,
        right=right_facts,
        texts_read=texts_read,
        texts=len(lines),
        distinct_texts=len(distinct),
        agreement=agreement,
        worst_at=None if agreement is None else lines[agreement.worst].place,
        neighbours=neighbours,
        verdict=judge(agreement, neighbours.mean),
    )


def _distinct(lines: Sequence[TextLine]) -> NDArray[np.intp]:
    """The place of the first of all texts that are equal, for each of them."""
    first: dict[str, int] = {}
    for place, one in enumerate(lines):
        first.setdefault(one.text, place)
    return np.fromiter(first.values(), np.intp, len(first))


def _embed(
    side: Side, lines: Sequence[TextLine], progress: FittingProgress
) -> tuple[NDArray[np.float32], SideFacts]:
    with progress.embedding(side.given, len(lines)) as show:
        vectors, facts = side.embed(lines, show)
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    for place in np.flatnonzero(~finite | ~vectors.any(axis=1)).tolist():
        what = "all zeros" if finite[place] else "not finite (NaN or infinity)"
        raise InferenceFailed(f"{lines[place].place}: the vector of {side.given} is {what}")
    return vectors, facts


def _directions(vectors: NDArray[np.float32], places: NDArray[np.intp]) -> NDArray[np.float32]:
    """Those rows at length 1; in blocks, as a copy of them all would be the peak of memory."""
    found = np.empty((len(places), vectors.shape[1]), np.float32)
    for start in range(0, len(places), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        found[rows] = normalize(vectors[places[rows]])
    return found


def _shared(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    distinct: NDArray[np.intp],
    lines: Sequence[TextLine],
) -> SharedNeighbours:
    count = min(len(distinct), MAX_QUERIES)
    drawn = np.random.default_rng(SEED).choice(len(distinct), count, replace=False, shuffle=False)
    queries = np.sort(drawn)
    shares = shared_neighbours(_directions(left, distinct), _directions(right, distinct), queries)
    worst = int(np.argmin(shares))
    return SharedNeighbours(
        queries=count,
        mean=float(shares.mean(dtype=np.float64)),
        least=float(shares[worst]),
        least_at=lines[distinct[queries[worst]]].place,
    )
