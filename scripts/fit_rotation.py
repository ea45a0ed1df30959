"""Learn the orthogonal matrix that makes prefixes of a model's vectors useful (Matryoshka).

A vector `v` of unit length becomes `v @ rotation`. The matrix is orthogonal, so cosines at full
size stay as they are; it only moves what matters to the front. `docs/matryoshka.md` has the
commands, the text and the results.

Owns: the fit and the measurement of a fitted matrix. Knows nothing of the server. Needs the
`[torch]` extra. The same machine, model, text and versions give the same file; another processor
may differ in the last bits.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.stats import spearmanr  # type: ignore[import-untyped, unused-ignore]
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional

Matrix = NDArray[np.float32]

SEED = 0
PREFIXES = (256, 192, 128, 96, 64, 32)  # sizes whose neighbours the fit protects
MEASURED_PREFIXES = (256, 128, 64, 32)  # shown after the full size
STEPS = 400
BATCH_TEXTS = 1024
LEARNING_RATE = 0.002  # at 0.01 Adam loses more of the principal axes than it gains
# Divided by 0.05, the nearest few texts dominate a softmax over cosines, as they do a search.
TEMPERATURE = 0.05
HELD_OUT_TEXTS = 4096  # never fitted on
EMBED_CHUNK_TEXTS = 512
NEIGHBOURS = 10
TENSOR_NAME = "rotation"
ORTHOGONALITY_TOLERANCE = 1e-6  # largest |rotationᵀ @ rotation - identity|, float32

console = Console()


class FitError(Exception):
    """Something the person at the keyboard can put right: shown as one line, exit code 2."""


# --- reading -----------------------------------------------------------------


def read_texts(files: Sequence[Path]) -> list[str]:
    """Return the distinct lines of `files` that are not blank, in an order fixed by SEED."""
    lines = (line.strip() for file in files for line in file.read_text("utf-8").splitlines())
    texts = list(dict.fromkeys(filter(None, lines)))
    if len(texts) < HELD_OUT_TEXTS + BATCH_TEXTS:
        raise FitError(
            f"--text: {len(texts):,} distinct lines, at least {HELD_OUT_TEXTS + BATCH_TEXTS:,}"
            f" are needed ({HELD_OUT_TEXTS:,} held out and a batch of {BATCH_TEXTS:,})"
        )
    return [texts[place] for place in np.random.default_rng(SEED).permutation(len(texts))]


class ScoredPairs(NamedTuple):
    """Pairs of sentences with how alike people found them."""

    left: list[str]
    right: list[str]
    scores: list[float]


def read_scored_pairs(file: Path) -> ScoredPairs:
    """Read a CSV of (sentence, sentence, score) that has no header line."""
    pairs = ScoredPairs([], [], [])
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines), start=1):
            try:
                left, right, score = row[0], row[1], float(row[2])
            except (IndexError, ValueError):
                raise FitError(
                    f"--evaluate {file}: row {number} is not sentence,sentence,score: {row}"
                ) from None
            pairs.left.append(left)
            pairs.right.append(right)
            pairs.scores.append(score)
    return pairs


def read_rotation(file: Path, embedding_dim: int) -> Matrix:
    """Return the matrix of a file that this script wrote, once its shape and angles are checked."""
    try:
        rotation = load_file(file)[TENSOR_NAME]
    except (SafetensorError, KeyError) as error:
        raise FitError(f"{file}: no tensor named {TENSOR_NAME!r} ({error})") from None
    if rotation.shape != (embedding_dim, embedding_dim) or rotation.dtype != np.float32:
        raise FitError(f"{file}: {rotation.dtype} {rotation.shape}, not {embedding_dim} square")
    deviation = float(np.abs(rotation.T @ rotation - np.eye(embedding_dim)).max())
    if deviation >= ORTHOGONALITY_TOLERANCE:
        raise FitError(f"{file}: not orthogonal, off by {deviation:.1e}")
    console.print(f"{file}: orthogonal to {deviation:.1e}")
    return rotation


def load_model(folder: Path) -> SentenceTransformer:
    # Without this check the name would be looked up on the Hugging Face hub.
    if not (folder / "modules.json").is_file():
        raise FitError(f"--model {folder}: not a sentence-transformers folder (no modules.json)")
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def embed(model: SentenceTransformer, texts: Sequence[str], purpose: str) -> Matrix:
    """Return the vectors of `texts`: (texts, embedding_dim), float32, unit length."""
    starts = range(0, len(texts), EMBED_CHUNK_TEXTS)
    chunks = [
        model.encode(
            list(texts[start : start + EMBED_CHUNK_TEXTS]),
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        for start in track(starts, f"Embedding {len(texts):,} {purpose}", console=console)
    ]
    return np.concatenate(chunks).astype(np.float32)


# --- fitting -----------------------------------------------------------------


def principal_axes(vectors: Tensor) -> Tensor:
    """Return the eigenvectors of `vectors.T @ vectors` as columns, largest eigenvalue first.

    (embedding_dim, embedding_dim), float32. The mean stays in, because cosines keep it too.
    """
    precise = vectors.double()
    _, axes = torch.linalg.eigh(precise.T @ precise)
    return axes.flip(1).float()


def log_neighbours(vectors: Tensor) -> Tensor:
    """Return the log-softmax of each text's cosines with the others: (texts, texts), float32.

    `vectors` is (texts, size), of any length. A text is no neighbour of itself.
    """
    unit = functional.normalize(vectors, dim=1)
    # Not -inf on the diagonal: the divergence would subtract it from itself and be NaN.
    cosines = (unit @ unit.T).fill_diagonal_(-1e4)
    return functional.log_softmax(cosines / TEMPERATURE, dim=1)


def prefix_losses(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Return how far each prefix's neighbours are from those at full size: (prefixes,), nats.

    The mean over texts of KL(softmax of full-size cosines || softmax of the prefix's cosines), the
    objective of stochastic neighbour embedding (Hinton and Roweis, 2002) with cosines.
    """
    target = log_neighbours(vectors)
    rotated = vectors @ rotation
    losses = [
        functional.kl_div(
            log_neighbours(rotated[:, :size]), target, reduction="batchmean", log_target=True
        )
        for size in PREFIXES
    ]
    return torch.stack(losses)


def fit(vectors: Tensor) -> Matrix:
    """Return the rotation for `vectors` of unit length: (embedding_dim, embedding_dim), float32."""
    start = principal_axes(vectors)
    with torch.no_grad():
        # Principal axes lose far more at 32 than at 256: unweighted, 32 would be all that counts.
        weights = 1 / prefix_losses(vectors[:BATCH_TEXTS], start)
    # exp of a skew-symmetric matrix is a rotation, so every step of Adam stays among rotations.
    turn = torch.zeros_like(start, requires_grad=True)
    adam = torch.optim.Adam([turn], lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    generator = torch.Generator().manual_seed(SEED)
    for _ in track(range(STEPS), f"Fitting to {len(vectors):,} texts", console=console):
        batch = vectors[torch.randperm(len(vectors), generator=generator)[:BATCH_TEXTS]]
        rotation = start @ torch.matrix_exp(turn - turn.T)
        adam.zero_grad()
        (weights @ prefix_losses(batch, rotation)).backward()
        adam.step()
        decay.step()
    return nearest_orthogonal(start @ torch.matrix_exp(turn - turn.T).detach())


def nearest_orthogonal(matrix: Tensor) -> Matrix:
    """Return the orthogonal factor of the polar decomposition, found in float64, as float32."""
    left, _, right = np.linalg.svd(matrix.double().numpy())
    orthogonal: Matrix = (left @ right).astype(np.float32)
    return orthogonal


# --- measuring ---------------------------------------------------------------


def unit_prefix(vectors: Matrix, size: int) -> Matrix:
    """Return the first `size` numbers of each vector, at unit length: (texts, size), float32."""
    prefix = vectors[:, :size]
    lengths: Matrix = np.linalg.norm(prefix, axis=1, keepdims=True)
    return prefix / lengths


def spearman_percent(left: Matrix, right: Matrix, scores: Sequence[float], size: int) -> float:
    """Return 100 times Spearman's correlation of the pairs' cosines with their scores."""
    cosines = np.sum(unit_prefix(left, size) * unit_prefix(right, size), axis=1)
    return 100 * float(spearmanr(cosines, scores).statistic)


def nearest(vectors: Matrix, size: int) -> NDArray[np.intp]:
    """Return the places of each text's nearest others by a prefix: (texts, NEIGHBOURS)."""
    unit = unit_prefix(vectors, size)
    distances: Matrix = -(unit @ unit.T)
    np.fill_diagonal(distances, np.inf)
    places: NDArray[np.intp] = np.argpartition(distances, NEIGHBOURS, axis=1)
    return places[:, :NEIGHBOURS]


def shared_neighbours_percent(vectors: Matrix, rotation: Matrix, size: int) -> float:
    """Return how many of the nearest neighbours at full size a prefix finds again, in percent."""
    full, prefix = nearest(vectors, vectors.shape[1]), nearest(vectors @ rotation, size)
    shared = sum(np.intersect1d(*rows).size for rows in zip(full, prefix, strict=True))
    return 100 * shared / full.size


class Comparison(NamedTuple):
    """One measure at several sizes, before and after the rotation."""

    title: str
    sizes: list[int]
    plain: list[float]
    rotated: list[float]


def compare(title: str, measure: Callable[[Matrix, int], float], rotation: Matrix) -> Comparison:
    """Take `measure(matrix, size)` at every size with the identity and with `rotation`."""
    identity = np.eye(len(rotation), dtype=np.float32)
    sizes = [len(rotation), *MEASURED_PREFIXES]
    plain = [measure(identity, size) for size in sizes]
    rotated = [measure(rotation, size) for size in sizes]
    return Comparison(title, sizes, plain, rotated)


# --- showing -----------------------------------------------------------------


def show_table(comparison: Comparison) -> None:
    table = Table("dimensions", "plain truncation", "learned rotation", title=comparison.title)
    for size, plain, rotated in zip(*comparison[1:], strict=True):
        table.add_row(str(size), f"{plain:.2f}", f"{rotated:.2f}")
    console.print(table)


def draw_plot(comparisons: Sequence[Comparison], file: Path) -> None:
    """Draw one panel a comparison on white, so that it reads on light and dark pages alike."""
    from matplotlib import pyplot

    # Without a salt the ids inside an SVG are random, and no two files are equal.
    pyplot.rcParams.update({"svg.hashsalt": TENSOR_NAME, "font.size": 11})
    width = 5.2 * len(comparisons)
    figure, panels = pyplot.subplots(1, len(comparisons), figsize=(width, 4.2), squeeze=False)
    for panel, comparison in zip(panels[0], comparisons, strict=True):
        places = range(len(comparison.sizes))
        lines = (
            ("learned rotation", comparison.rotated, "o-", "#0969a2", (5, 6), "left"),
            ("plain truncation", comparison.plain, "s--", "#b4530a", (-5, -15), "right"),
        )
        for label, values, style, color, offset, side in lines:
            panel.plot(places, values, style, color=color, label=label, linewidth=2)
            for place in places[1:]:  # the full size, where both are equal, has its own label
                panel.annotate(
                    f"{values[place]:.2f}",
                    (place, values[place]),
                    xytext=offset,
                    textcoords="offset points",
                    ha=side,
                    color=color,
                    fontsize=10,
                )
        panel.annotate(
            f"{comparison.plain[0]:.2f}",
            (0, comparison.plain[0]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=10,
        )
        panel.set_title(comparison.title, fontsize=11)
        panel.set_xticks(places, [str(size) for size in comparison.sizes])
        panel.set_xlabel("dimensions kept")
        panel.margins(x=0.13, y=0.16)
        panel.grid(axis="y", color="#d8dee4")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(loc="lower left", frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150)


# --- the command -------------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn a rotation that makes prefixes useful.")
    parser.add_argument("--model", type=Path, required=True, help="sentence-transformers folder")
    parser.add_argument(
        "--text", type=Path, required=True, action="append", help="UTF-8, one text a line"
    )
    parser.add_argument("--max-texts", type=int, default=40_000, help="texts used (default: 40000)")
    parser.add_argument("--evaluate", type=Path, help="CSV of sentence,sentence,score, no header")
    parser.add_argument("--plot", type=Path, help="draw what was measured: FILE.svg or FILE.png")
    parser.add_argument(
        "--no-fit", action="store_true", help="measure the matrix that is already at --output"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="FILE.safetensors")
    options = parser.parse_args()
    if options.plot and options.plot.suffix not in (".svg", ".png"):
        parser.error(f"--plot {options.plot}: the name must end in .svg or .png")
    if options.max_texts < HELD_OUT_TEXTS + BATCH_TEXTS:
        parser.error(f"--max-texts: at least {HELD_OUT_TEXTS + BATCH_TEXTS}")
    for file in filter(None, (options.output, options.plot)):
        if not file.parent.is_dir():  # found now, not after minutes of fitting
            parser.error(f"{file}: there is no folder {file.parent}")
    return options


def run(options: argparse.Namespace) -> None:
    texts = read_texts(options.text)[: options.max_texts]
    pairs = read_scored_pairs(options.evaluate) if options.evaluate else None
    model = load_model(options.model)
    held_out = embed(model, texts[:HELD_OUT_TEXTS], "held-out texts")
    embedding_dim = held_out.shape[1]
    if embedding_dim <= PREFIXES[0]:
        raise FitError(f"--model: {embedding_dim} dimensions, more than {PREFIXES[0]} are needed")

    if not options.no_fit:
        vectors = embed(model, texts[HELD_OUT_TEXTS:], "texts to fit to")
        rotation = fit(torch.from_numpy(vectors))
        # Not save_file, which makes a file that only its owner may read (safetensors 0.8).
        options.output.write_bytes(save({TENSOR_NAME: rotation}))
    rotation = read_rotation(options.output, embedding_dim)  # measure what was saved

    comparisons = []
    if pairs:
        left, right = (embed(model, side, "sentences of pairs") for side in pairs[:2])

        def spearman(matrix: Matrix, size: int) -> float:
            return spearman_percent(left @ matrix, right @ matrix, pairs.scores, size)

        title = f"{options.evaluate.stem}: Spearman x 100"
        comparisons.append(compare(title, spearman, rotation))

    def shared_neighbours(matrix: Matrix, size: int) -> float:
        return shared_neighbours_percent(held_out, matrix, size)

    title = f"Held-out text: same {NEIGHBOURS} nearest neighbours, %"
    comparisons.append(compare(title, shared_neighbours, rotation))
    for comparison in comparisons:
        show_table(comparison)
    if options.plot:
        draw_plot(comparisons, options.plot)


def main() -> int:
    options = parse_options()
    try:
        run(options)
    except (FitError, OSError, UnicodeDecodeError) as error:
        print(f"fit_rotation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
