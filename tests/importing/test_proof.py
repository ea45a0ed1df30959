"""An import's comparisons: nothing hides behind a minimum, and what cannot be compared is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.card import Card
from server.errors import ImportRefused
from server.importing import packages
from server.importing.proof import compare, prove_it_computes, prove_parity
from server.importing.proof_texts import PARITY_TEXTS, REFERENCE_TEXTS
from server.inference import direct
from server.inference.loader import Encoder


def folder(**facts: Any) -> Any:
    head = SimpleNamespace(normalize=True, pooling="mean", dense=())
    known = {
        "path": Path("folder"),
        "head": head,
        "max_input_tokens": 256,
        "weights": (),
        "not_stock": None,
    }
    return SimpleNamespace(**known | facts)


class Other:
    """Gives what the encoder gives, changed."""

    name = "another implementation"

    def __init__(self, encoder: Encoder, change: Any = lambda vectors, prompt: vectors) -> None:
        self._encoder = encoder
        self._change = change
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        self.asked.append(prompt)
        vectors = direct.embed_texts(self._encoder, texts, prompt)
        found: NDArray[np.float32] = self._change(vectors, prompt)
        return found


def test_every_prompt_is_compared_once_and_no_prompt_as_well(encoder: Encoder) -> None:
    other = Other(encoder)
    found = compare(folder(), encoder, other, ["q: ", "", "q: "], briefly=["s: ", "q: ", "s: "])
    assert sorted(other.asked) == ["", "q: ", "s: "]
    assert found.texts == 2 * len(PARITY_TEXTS) + len(REFERENCE_TEXTS)
    assert found.min_cosine == pytest.approx(1)
    assert found.max_difference == 0


def test_one_wrong_vector_behind_one_prompt_is_found_and_its_text_named(encoder: Encoder) -> None:
    def turn_one(vectors: NDArray[np.float32], prompt: str) -> NDArray[np.float32]:
        if prompt == "q: ":
            vectors[5] = -vectors[5]
        return vectors

    found = compare(folder(), encoder, Other(encoder, turn_one), ["q: "])
    assert found.min_cosine == pytest.approx(-1)
    assert found.worst == PARITY_TEXTS[5]
    assert found.max_difference > 0.1


def test_a_vector_that_is_not_finite_does_not_hide(encoder: Encoder) -> None:
    def spoil(vectors: NDArray[np.float32], prompt: str) -> NDArray[np.float32]:
        vectors[2, 0] = np.nan
        return vectors

    found = compare(folder(), encoder, Other(encoder, spoil), [])
    assert np.isnan(found.min_cosine)
    assert np.isnan(found.max_difference)
    assert found.worst == PARITY_TEXTS[2]


def test_vectors_of_another_size_are_refused(encoder: Encoder) -> None:
    other = Other(encoder, lambda vectors, prompt: vectors[:, :100])
    with pytest.raises(ImportRefused, match="vectors of 384 dimensions, but 100 with"):
        compare(folder(), encoder, other, [])


def test_whatever_the_other_side_fails_with_is_one_line(encoder: Encoder) -> None:
    def fail(vectors: object, prompt: str) -> None:
        raise RuntimeError("no such thing\nand pages more")

    with pytest.raises(
        ImportRefused, match=r"^folder: cannot compute with the prompt '': no such thing$"
    ):
        compare(folder(), encoder, Other(encoder, fail), [])


@pytest.mark.parametrize(
    ("weights", "said"),
    [((), "the publisher's graph was compared with nothing"), (("w",), "needs its package: ")],
)
def test_what_cannot_be_compared_is_said(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, weights: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: False)
    lines: list[str] = []
    assert prove_parity(folder(weights=weights), encoder, [], lines.append, force=False) is None
    assert said in lines[0]


def test_the_reference_vectors_are_those_of_the_texts_that_the_card_names(
    encoder: Encoder, plain_card: Card
) -> None:
    lines: list[str] = []
    vectors = prove_it_computes(folder(), encoder, lines.append)
    assert plain_card.reference is not None
    assert plain_card.reference.texts == REFERENCE_TEXTS
    np.testing.assert_array_equal(vectors, direct.embed_texts(encoder, REFERENCE_TEXTS))
    assert lines == []


def test_vectors_that_are_not_normalised_as_the_folder_says_are_refused(encoder: Encoder) -> None:
    (backend,) = encoder.backends
    longer = SimpleNamespace(
        forward=lambda sequences: 2 * backend.forward(sequences),
        count_embeddings=backend.count_embeddings,
    )
    stretched: Any = SimpleNamespace(
        tokenizer=encoder.tokenizer, backends=(longer,), embedding_dim=encoder.embedding_dim
    )
    with pytest.raises(ImportRefused, match="but the graph's have other lengths than 1"):
        prove_it_computes(folder(), stretched, lambda line: None)
    plain = SimpleNamespace(normalize=False)
    prove_it_computes(folder(head=plain), stretched, lambda line: None)


def test_a_text_of_full_length_that_cannot_be_computed_is_told_apart(encoder: Encoder) -> None:
    (backend,) = encoder.backends

    def forward(sequences: Any) -> Any:
        if any(len(sequence) > 100 for sequence in sequences):
            raise RuntimeError("indices out of bounds\nmore")
        return backend.forward(sequences)

    short = SimpleNamespace(forward=forward, count_embeddings=backend.count_embeddings)
    narrow: Any = SimpleNamespace(tokenizer=encoder.tokenizer, backends=(short,))
    with pytest.raises(
        ImportRefused, match=r"a text of 256 tokens cannot be computed; .*: indices out of bounds$"
    ):
        prove_it_computes(folder(), narrow, lambda line: None)
