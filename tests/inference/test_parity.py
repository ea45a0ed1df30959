"""A machine that computes other vectors than the card's reference is not let in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from server.catalog.card import Card
from server.errors import ModelLoadError
from server.inference import least_cosines
from server.inference.backend import Layout, TokenIds
from server.inference.loader import Encoder
from server.inference.parity import check_parity, check_range, reference_cosine

DIM = 384


class Skewed:
    """Adds to each vector what turns it by a known angle."""

    layout = Layout.PADDED
    concurrent_passes = None

    def __init__(self, encoder: Encoder, cosine: float) -> None:
        self._backend = encoder.backends[0]
        self._cosine = cosine

    def forward(self, sequences: Sequence[TokenIds], *, alone: bool = False) -> NDArray[np.float32]:
        vectors = self._backend.forward(sequences, alone=alone)
        across = np.roll(vectors, 1, axis=1)
        across -= (across * vectors).sum(axis=1, keepdims=True) * vectors
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        turned: NDArray[np.float32] = self._cosine * vectors + np.sqrt(1 - self._cosine**2) * across
        return turned.astype(np.float32, copy=False)

    def count_embeddings(self, vocabulary_size: int) -> int:
        return self._backend.count_embeddings(vocabulary_size)


def skewed(encoder: Encoder, cosine: float) -> Encoder:
    return dataclasses.replace(encoder, backends=(*encoder.backends, Skewed(encoder, cosine)))


def test_this_machine_computes_the_reference(encoder: Encoder, plain_card: Card) -> None:
    cosine = reference_cosine(encoder, plain_card)
    assert cosine is not None
    assert cosine > 0.99999
    check_parity(encoder, plain_card, 0.99999)


@pytest.mark.parametrize("cosine", [0.9995, 0.998, 0.0, np.nan])
def test_one_device_of_several_that_differs_is_found(
    encoder: Encoder, plain_card: Card, cosine: float
) -> None:
    odd = skewed(encoder, cosine)
    found = reference_cosine(odd, plain_card)
    np.testing.assert_allclose(found, cosine, atol=1e-5)  # type: ignore[arg-type]
    if cosine == 0.9995:
        check_parity(odd, plain_card, least_cosines.START)
        return
    with pytest.raises(ModelLoadError, match=r"all-MiniLM-L6-v2.*setting min_parity"):
        check_parity(odd, plain_card, least_cosines.START)


class Narrow:
    """Overflows on texts of at least so many tokens."""

    layout = Layout.PADDED
    concurrent_passes = None

    def __init__(self, encoder: Encoder, tokens: int) -> None:
        self._backend = encoder.backends[0]
        self._tokens = tokens

    def forward(self, sequences: Sequence[TokenIds], *, alone: bool = False) -> NDArray[np.float32]:
        vectors = self._backend.forward(sequences, alone=alone)
        vectors[[len(token_ids) >= self._tokens for token_ids in sequences]] = np.nan
        return vectors

    def count_embeddings(self, vocabulary_size: int) -> int:
        return self._backend.count_embeddings(vocabulary_size)


@pytest.mark.parametrize("tokens", [5, 256])
def test_numbers_that_overflow_on_the_reference_texts_or_all_of_them_as_one_are_refused(
    encoder: Encoder, plain_card: Card, tokens: int
) -> None:
    narrow = dataclasses.replace(encoder, backends=(*encoder.backends, Narrow(encoder, tokens)))
    card = plain_card.computed_in("float16")
    check_range(encoder, card)
    with pytest.raises(ModelLoadError, match=r"float16 is too narrow .* reference texts.*--dtype"):
        check_range(narrow, card)


def test_a_card_without_a_reference_cannot_be_compared(encoder: Encoder, plain_card: Card) -> None:
    facts = {name: getattr(plain_card, name) for name in Card.model_fields}
    card = Card.model_construct(**facts | {"reference": None})
    assert reference_cosine(encoder, card) is None
    check_parity(encoder, card, 1.0)
    check_range(encoder, card)


def test_a_reference_of_another_shape_is_told(
    encoder: Encoder, plain_card: Card, tmp_path: Path
) -> None:
    assert plain_card.reference is not None
    save_file({"embeddings": np.zeros((2, 8), np.float32)}, tmp_path / plain_card.reference.file)
    facts = {name: getattr(plain_card, name) for name in Card.model_fields}
    card = Card.model_construct(**facts | {"folder": tmp_path})
    with pytest.raises(ModelLoadError, match=r"shape \(2, 8\)"):
        reference_cosine(encoder, card)
