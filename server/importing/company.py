"""The proof that a text's vector is its own: alone, in any order and beside any other text.

Whoever made the graph: a server computes padded texts together, and an index would hold the
neighbours' traces. Computed on the backend that is to serve. Any thread may call.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.errors import ImportRefused
from server.importing.folder import ModelFolder
from server.importing.proof_texts import COMPANY_TEXTS
from server.importing.refusing import refusing
from server.inference import direct, least_cosines
from server.inference.backend import Backend, TokenIds
from server.inference.loader import Encoder
from server.inference.pooling import cosines

SIZES = (2, 3, 8, 9)  # texts of a micro-batch, also around the widths of a processor's registers
# Operators whose scales are those of the whole batch: ONNX Runtime's quantize_dynamic makes them.
_BATCH_SCALES = (b"DynamicQuantizeLinear", b"DynamicQuantizeMatMul", b"DynamicQuantizeLSTM")
_SHOWN_CHARS = 40


@dataclass(frozen=True, slots=True)
class Worst:
    """The text that its company changes most."""

    text: int  # its place among the texts
    cosine: float  # between alone and in company
    company: int  # how many texts were computed together


def prove_company(
    folder: ModelFolder,
    encoder: Encoder,
    graph: Path,
    report: Callable[[str], None],
    *,
    least: float = least_cosines.COMPANY,
) -> None:
    """Compare each text alone with the same text in batches of SIZES, in other orders.

    Args:
        graph: what the encoder's backend computes; read only to say what is wrong with it.
        least: the cosine below which the model is refused. No `--force` gets past it: there is no
            vector that a server could vouch for.

    Raises:
        ImportRefused: a vector is not finite, is zero, or depends on its company.
    """
    backend = encoder.backends[0]
    sequences = direct.tokenize(encoder.tokenizer, COMPANY_TEXTS)
    with refusing(f"{folder.path}: the graph cannot compute"):
        alone = np.concatenate([backend.forward([sequence]) for sequence in sequences])
        check_vectors(folder, COMPANY_TEXTS, alone)
        worst = _find_worst(folder, backend, sequences, alone)
    report(
        f"{len(sequences)} texts, each alone and beside up to {max(SIZES) - 1} others: "
        f"smallest cosine {worst.cosine:.7f}"
    )
    if worst.cosine >= least:
        return
    reason = _explain(graph, backend, sequences[worst.text], least)
    raise ImportRefused(
        f"{folder.path}: a text's vector depends on the texts beside it: cosine {worst.cosine:.5f} "
        f"between {COMPANY_TEXTS[worst.text][:_SHOWN_CHARS]!r} alone and among {worst.company}, at "
        f"least {least} is needed; {reason}; {_advise(folder)}"
    )


def check_vectors(folder: ModelFolder, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """See that each vector, (texts, embedding_dim), can be compared with another.

    Raises:
        ImportRefused: one of them holds NaN or infinity, or nothing but zeros; names its text.
    """
    for text, vector in zip(texts, vectors, strict=True):
        finite = bool(np.isfinite(vector).all())
        if not finite or not vector.any():
            what = "all zeros" if finite else "not finite (NaN or infinity)"
            raise ImportRefused(
                f"{folder.path}: the vector of {text[:_SHOWN_CHARS]!r} is {what}: the weights or the "
                "graph are broken"
            )


def companies(count: int) -> Iterator[NDArray[np.intp]]:
    """Which of `count` texts are computed together; every text once with each of SIZES."""
    for size in SIZES:
        order = np.random.default_rng(size).permutation(count)
        yield from (order[start : start + size] for start in range(0, count, size))


def _find_worst(
    folder: ModelFolder,
    backend: Backend,
    sequences: Sequence[TokenIds],
    alone: NDArray[np.float32],
) -> Worst:
    worst = Worst(text=0, cosine=1.0, company=1)
    for company in companies(len(sequences)):
        together = backend.forward([sequences[i] for i in company])
        check_vectors(folder, [COMPANY_TEXTS[i] for i in company], together)
        found = cosines(alone[company], together)
        place = int(np.argmin(found))
        if found[place] < worst.cosine:
            worst = Worst(int(company[place]), float(found[place]), len(company))
    return worst


def _explain(graph: Path, backend: Backend, sequence: TokenIds, least: float) -> str:
    """What is probably wrong with a graph for which company matters."""
    scales = _find_batch_scales(graph)
    if scales:
        return (
            f"the graph is quantised dynamically ({scales}): its scales are those of a whole batch"
        )
    # The same company without padding: the text's own tokens, in reverse.
    (alone,) = backend.forward([sequence])
    beside = backend.forward([sequence, sequence[::-1].copy()])[0]
    if cosines(alone[None], beside[None])[0] >= least:
        return "padding changes it: the graph does not heed its attention_mask"
    return "probably the graph is quantised dynamically, with scales of a whole batch"


def _find_batch_scales(graph: Path) -> str | None:
    """An operator of _BATCH_SCALES that the graph's file names."""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return next((name.decode() for name in _BATCH_SCALES if content.find(name) >= 0), None)


def _advise(folder: ModelFolder) -> str:
    if folder.weights:
        return "--graph own makes a graph of the folder's weights"
    return "take the publisher's float32 graph, or a folder with safetensors weights"
