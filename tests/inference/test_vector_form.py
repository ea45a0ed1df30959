from __future__ import annotations

import base64

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.catalog.card import Card, Matryoshka
from server.errors import InvalidRequest
from server.inference.vector_form import VectorForm, json_values, stored

DIM = 384


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32)


def test_only_matryoshka_models_take_other_dimensions_than_their_own(
    plain_card: Card, matryoshka_card: Card
) -> None:
    assert VectorForm.of(plain_card) == VectorForm.of(plain_card, DIM) == VectorForm(DIM)
    with pytest.raises(InvalidRequest) as caught:
        VectorForm.of(plain_card, DIM - 1)
    assert caught.value.message == "This model does not support specifying dimensions."
    assert caught.value.param == "dimensions"
    sizes = (1, 100, DIM)
    assert [VectorForm.of(matryoshka_card, n).dimensions for n in sizes] == list(sizes)


@pytest.mark.parametrize("requested", [0, -1, DIM + 1])
def test_sizes_outside_the_models_are_refused(matryoshka_card: Card, requested: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"{requested} is not between 1 and {DIM}"):
        VectorForm.of(matryoshka_card, requested)


def test_a_card_that_says_so_has_its_vectors_centred_before_the_cut(
    plain_card: Card, vectors: NDArray[np.float32]
) -> None:
    centring = Matryoshka(dimensions=(DIM, 64), layer_norm=True)
    card = plain_card.model_copy(update={"matryoshka": centring})
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    expected = centred[:, :64] / np.linalg.norm(centred[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(VectorForm.of(card, 64).shape(vectors, None), expected, atol=1e-6)


def test_vectors_to_which_nothing_is_done_are_not_copied(vectors: NDArray[np.float32]) -> None:
    assert VectorForm(DIM).shape(vectors, None) is vectors
    assert stored(vectors) is vectors


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_both_encodings_read_back_as_the_same_float32(numbers: list[float]) -> None:
    vectors = np.array([numbers, numbers[::-1]], np.float32)
    written = orjson.dumps(json_values(vectors), option=orjson.OPT_SERIALIZE_NUMPY)
    read = np.array(orjson.loads(written), np.float32)
    assert read.tobytes() == vectors.tobytes()
    strings = json_values(vectors, "base64")
    assert b"".join(base64.b64decode(str(one)) for one in strings) == vectors.tobytes()


def test_stored_vectors_are_little_endian_whatever_the_machine(
    vectors: NDArray[np.float32],
) -> None:
    turned = vectors.astype(">f4")
    assert stored(turned).tobytes() == stored(vectors).tobytes() == vectors.astype("<f4").tobytes()
