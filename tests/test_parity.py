"""Vectors served over HTTP equal sentence-transformers', whatever the text and its neighbours."""

from __future__ import annotations

import csv
import random
import warnings
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from tests.conftest import MATRYOSHKA, PLAIN

Vectors = NDArray[np.float32]

ODD_TEXTS = [
    " ", "\t", "\n\n", ".", "a", "A", "é", "e\u0301", "ß", "ﬁ", "\u200b", "\u00a0", "0", "-" * 300, "?!" * 50,
    "🎉", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "日本語", "한국어 문장입니다.", "Привет, мир!", "مرحبا بالعالم", "שלום",
    "naïve café — “quoted” … end", "tabs\tand\nnew lines\r\n here", "  leading and trailing  ",
    "many      blanks", "ALL CAPS SENTENCE", "CamelCaseAndsnake_case", "http://example.org/?q=1&b=2",
    "def f(x): return x ** 2", '{"json": [1, 2, 3]}', "1,234,567.89 EUR", "x" * 99, "x" * 101, "Ａ fullwidth",
    "[CLS] [SEP] [MASK] [PAD] [UNK]", "\x00null\x00", "tom & jerry <b>bold</b>", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "ｈａｌｆ", "Ǆ", "İstanbul",
]  # fmt: skip
WORDS = [
    "the",
    "of",
    "storage",
    "vector",
    "quick",
    "東京",
    "naïve",
    "running",
    "embeddings",
    "🎉",
    "database",
    "Größe",
    "sea-shore",
    "42",
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """More than 500 texts: odd ones, and random ones of 1 to 300 words."""
    draw = random.Random(7)
    lengths = [*range(1, 301, 4), *(draw.randint(1, 30) for _ in range(400))]
    blanks = [" ", " ", " ", "  ", "\n", ", ", ". "]
    made = ["".join(draw.choice(WORDS) + draw.choice(blanks) for _ in range(n)) for n in lengths]
    return [*ODD_TEXTS, *made]


@pytest.fixture(scope="module")
def reference(official_folder: Path) -> Any:
    """sentence-transformers with the official folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(official_folder), device="cpu", local_files_only=True)


def embed(http: httpx.Client, texts: list[str], model: str = PLAIN, **fields: Any) -> Vectors:
    body = {"model": model, "input": texts, "truncate": True, **fields}
    answer = http.post("/v1/embeddings", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]], np.float32)


def cosines(one: Vectors, other: Vectors) -> NDArray[np.float64]:
    a, b = one.astype(np.float64), other.astype(np.float64)
    products = (a * b).sum(axis=1)
    return np.asarray(products / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def test_alone_and_in_batches_of_64_every_vector_is_the_references(
    http: httpx.Client, texts: list[str], reference: Any
) -> None:
    assert len(texts) >= 500
    wanted = reference.encode(texts, batch_size=1, convert_to_numpy=True)
    alone = np.concatenate([embed(http, [text]) for text in texts])
    shuffled = random.Random(1).sample(range(len(texts)), len(texts))
    batched = np.empty_like(alone)
    for start in range(0, len(texts), 64):
        rows = shuffled[start : start + 64]
        batched[rows] = embed(http, [texts[row] for row in rows])
    for name, vectors in (("alone", alone), ("in batches of 64", batched)):
        worst = cosines(vectors, wanted).min()
        largest = np.abs(vectors - wanted).max()
        print(f"{len(texts)} texts {name}: smallest cosine {worst:.8f}, largest difference "
              f"{largest:.1e}")  # fmt: skip
        assert worst >= 0.99999
    assert cosines(alone, batched).min() > 0.99999


def test_the_matryoshka_models_full_vectors_keep_the_references_cosines(
    http: httpx.Client, texts: list[str], reference: Any
) -> None:
    some = texts[:100]
    wanted = reference.encode(some, convert_to_numpy=True)
    turned = embed(http, some, model=MATRYOSHKA)
    np.testing.assert_allclose(turned @ turned.T, wanted @ wanted.T, atol=1e-5)


def test_usage_counts_the_references_tokens(
    http: httpx.Client, texts: list[str], reference: Any
) -> None:
    for text in texts[::25]:
        body = {"model": PLAIN, "input": text, "truncate": True}
        usage = http.post("/v1/embeddings", json=body).json()["usage"]
        tokens = reference.tokenizer(text, truncation=True, max_length=256)["input_ids"]
        assert usage["prompt_tokens"] == len(tokens)


def test_spearman_on_stsb_equals_the_references_to_two_decimals(
    http: httpx.Client, reference: Any, stsb: Path
) -> None:
    with stsb.open(encoding="utf-8", newline="") as file:
        pairs = list(csv.reader(file))
    assert len(pairs) == 1500
    scores = [float(score) for _, _, score in pairs]
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    served = [embed(http, side) for side in sides]
    wanted = [reference.encode(side, batch_size=64, convert_to_numpy=True) for side in sides]
    ours, theirs = (
        100 * spearmanr(cosines(first, second), scores).statistic
        for first, second in (served, wanted)
    )
    print(f"STS-B dev Spearman x100: {ours:.4f} over HTTP, {theirs:.4f} sentence-transformers")
    assert round(ours, 2) == round(theirs, 2)
