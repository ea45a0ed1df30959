from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.frontends.framing import BadFrame
from server.frontends.messages import (
    Embed,
    EmbedAnswer,
    Load,
    Matrix,
)
from server.frontends.wire import read_answer, read_message, write

TOKENS = st.lists(hnp.arrays(np.int32, st.integers(1, 40)), min_size=1, max_size=10)
Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]


@given(st.integers(0, 65535), st.text(max_size=100), st.none() | st.integers(0, 2**40), TOKENS)
def test_token_ids_arrive_as_they_were(
    model: int, key: str, ticket: int | None, token_ids: list[Int32s]
) -> None:
    asked = read_message(write(Embed.of(model, key, ticket, token_ids)))
    assert isinstance(asked, Embed)
    assert (asked.model, asked.key, asked.ticket) == (model, key, ticket)
    arrived = asked.sequences()
    assert [ids.dtype for ids in arrived] == [np.int32] * len(token_ids)
    assert [ids.tolist() for ids in arrived] == [ids.tolist() for ids in token_ids]


@pytest.mark.parametrize(
    ("lengths", "token_ids"),
    [([], []), ([], [1]), ([1], []), ([2], [1]), ([1], [1, 2]), ([0, 1], [1]), ([2, -1], [1])],
)
def test_token_ids_whose_lengths_do_not_add_up_are_refused(
    lengths: list[int], token_ids: list[int]
) -> None:
    first, second = (np.array(one, np.int32).tobytes() for one in (lengths, token_ids))
    for parts in ((first, second), (first + b"\1", second), (first, second + b"\1")):
        with pytest.raises(BadFrame):
            Embed(1, "key", None, memoryview(parts[0]), memoryview(parts[1])).sequences()


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(5))), st.floats(0, 1e6))
def test_vectors_arrive_bit_for_bit(
    vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]], wait_s: float
) -> None:
    question = Embed.of(0, "", None, [np.ones(1, np.int32)])
    for sent in (vectors, np.asfortranarray(vectors)):
        answer = read_answer(question, write(EmbedAnswer(Matrix.of(sent), wait_s, 0.25)))
        arrived = answer.vectors.array()
        assert arrived.dtype == np.float32
        assert (arrived.shape, arrived.tobytes()) == (vectors.shape, vectors.tobytes())
        assert (answer.wait_s, answer.compute_s) == (wait_s, 0.25)


def test_arrays_are_read_where_they_lie() -> None:
    content = write(EmbedAnswer(Matrix.of(np.ones((64, 384), np.float32)), 0, 0))
    arrived = read_answer(Embed.of(0, "", None, [np.ones(1, np.int32)]), content)
    assert arrived.vectors.numbers.obj is content


def test_a_rotation_or_none_arrives_as_it_was() -> None:
    rotation = np.arange(9, dtype=np.float32).reshape(3, 3)
    for sent in (rotation, rotation.T):
        arrived = read_answer(Load(0), write(Matrix.of(sent)))
        assert arrived is not None
        assert np.array_equal(arrived.array(), sent)
    assert read_answer(Load(0), write(None)) is None
