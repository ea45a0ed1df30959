"""What vectors are worth: how near those in float32, and how near people's judgement."""

from __future__ import annotations

import functools
import time

import numpy as np

from scripts.benchmark import client
from scripts.benchmark.client import BadAnswer
from scripts.benchmark.peers import Vectors
from scripts.benchmark.scenario import OWN, Turn
from scripts.benchmark.scenarios import vectors_of
from scripts.benchmark.targets import REPOSITORY, BenchError, Server
from server.fitting.measuring import read_scored_pairs
from server.inference.agreement import agreement_of
from server.inference.neighbours import shared_neighbours, spearman

CUT_MODEL = "all-MiniLM-L6-v2-matryoshka"
LINES = 600
_LINE_CHARS = (30, 200)
_REQUEST_TEXTS = 256


def quality(turn: Turn, *, dimensions: int, lines: int = LINES) -> None:
    """Vectors of real texts against the first target's in float32, and the speed of this work.

    Only our servers are asked for fewer than the model's own dimensions. Cosines are told at its own
    size; neighbours kept are those among the lines of this project's documentation.
    """
    cut = dimensions < client.DIMENSIONS
    if cut and turn.target.name not in OWN.values():
        return
    pairs = read_scored_pairs(turn.bench.stsb) if turn.bench.stsb else None
    texts = [*documentation(lines), *([*pairs.left, *pairs.right] if pairs else [])]
    started = time.perf_counter()
    vectors = _compute(turn, texts, dimensions if cut else None)
    figures = {"texts_per_s": len(texts) / (time.perf_counter() - started)}
    if turn.bench.exact is None and turn.target.dtype == "float32" and not cut:
        turn.bench.exact = vectors
    if turn.bench.exact is None:
        raise BenchError("no target computes in float32: add --dtype float32")
    if not cut:
        agreement = agreement_of(turn.bench.exact, vectors)
        figures |= {"mean_cosine": agreement.mean_cosine, "least_cosine": agreement.min_cosine}
    kept = shared_neighbours(turn.bench.exact[:lines], vectors[:lines], np.arange(lines))
    figures["top_ten_kept_percent"] = 100 * float(kept.mean())
    if pairs:
        left, right = np.split(vectors[lines:], 2)
        figures["spearman"] = spearman(left, right, pairs.scores)
    turn.record(figures)


def _compute(turn: Turn, texts: list[str], dimensions: int | None) -> Vectors:
    """Unit vectors of all texts, in requests that come one after the other."""
    requests = [
        texts[start : start + _REQUEST_TEXTS] for start in range(0, len(texts), _REQUEST_TEXTS)
    ]
    if not isinstance(turn.target, Server):
        found: Vectors = turn.peer.ask("compute", requests=requests)
        return found
    more = {"model": CUT_MODEL, "dimensions": dimensions} if dimensions else {}
    answers = []
    for request in requests:
        body = turn.server.request("POST", "/v1/embeddings", client.embeddings_body(request, more))
        if body is None:
            raise BadAnswer(f"{turn.target.name} gives no vectors")
        answers.append(vectors_of(body))
    return np.concatenate(answers)


@functools.cache
def documentation(lines: int) -> list[str]:
    """Lines of this checkout's documentation, drawn at random, the same ones every time."""
    files = sorted((REPOSITORY / "docs").rglob("*.md"))
    read = (line.strip() for file in files for line in file.read_text("utf-8").splitlines())
    least, most = _LINE_CHARS
    known = list(dict.fromkeys(line for line in read if least < len(line) < most))
    drawn = np.random.default_rng(0).permutation(len(known))[:lines]
    return [known[place] for place in drawn]
