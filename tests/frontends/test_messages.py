from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.catalog.registry import Registry
from server.engine.interface import ModelState
from server.errors import ApiError
from server.frontends.framing import BadFrame
from server.frontends.messages import (
    Admit,
    AskSamples,
    CannotStart,
    Count,
    Counter,
    Drain,
    Embed,
    EngineState,
    Failure,
    GiveBack,
    Load,
    Look,
    Message,
    Question,
    Ready,
    Rotation,
    SamplesOfOthers,
    Vectors,
    Welcome,
    read_answer,
    read_failure,
    read_message,
    served_by,
    write,
)
from server.settings import Settings
from tests.test_errors import EXAMPLES

TOKENS = st.lists(hnp.arrays(np.int32, st.integers(1, 40)), min_size=1, max_size=10)
Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]
SAMPLES = [("family", True, [("sample", (("label", "text"),), 0.5), ("other", (), float("inf"))])]


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
        answer = read_answer(question, write(Vectors.of(sent, wait_s, 0.25)))
        arrived = answer.array(len(vectors))
        assert arrived.dtype == np.float32
        assert (arrived.shape, arrived.tobytes()) == (vectors.shape, vectors.tobytes())
        assert (answer.wait_s, answer.compute_s) == (wait_s, 0.25)


def test_arrays_are_read_where_they_lie() -> None:
    content = write(Vectors.of(np.ones((64, 384), np.float32), 0, 0))
    arrived = read_answer(Embed.of(0, "", None, [np.ones(1, np.int32)]), content)
    assert arrived.numbers.obj is content


def test_a_rotation_or_none_arrives_as_it_was() -> None:
    rotation = np.arange(9, dtype=np.float32).reshape(3, 3)
    for sent in (rotation, rotation.T):
        arrived = read_answer(Load(0), write(Rotation.of(sent))).array(3)
        assert arrived is not None
        assert np.array_equal(arrived, sent)
    assert read_answer(Load(0), write(Rotation.of(None))).array(3) is None


ANSWERS: list[tuple[Question[Any], object]] = [
    (Admit(1, "key", 7, 9), None),
    (Count("a/ü", -7), Counter(-2, 59.5)),
    (Look("a"), Counter(2**40, 0.0)),
    (SamplesOfOthers(SAMPLES), [SAMPLES, []]),
    (AskSamples(), SAMPLES),
]


@pytest.mark.parametrize(("question", "answer"), ANSWERS, ids=lambda one: type(one).__name__)
def test_questions_and_their_answers_arrive_as_they_were(
    question: Question[Any], answer: object
) -> None:
    assert read_message(write(question)) == question
    assert read_answer(question, write(answer)) == answer
    with pytest.raises(BadFrame):
        read_answer(question, write("no answer to any of them"))


@pytest.mark.parametrize(
    "message",
    [
        GiveBack(3),
        Ready(),
        CannotStart("why"),
        Drain(),
        EngineState(),
        EngineState(True, [ModelState(True, False, 7), ModelState()], True),
    ],
    ids=repr,
)
def test_what_is_told_arrives_as_it_was(message: Message) -> None:
    assert read_message(write(message)) == message


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_it_was_raised(kind: type[ApiError]) -> None:
    sent = EXAMPLES[kind][0]()
    arrived = read_failure(write(Failure.of(sent)))
    assert type(arrived) is kind
    assert str(arrived) == str(sent)
    assert vars(arrived) == vars(sent)
    assert (arrived.status, arrived.headers, arrived.body()) == (
        (sent.status, sent.headers, sent.body())
    )


@pytest.mark.parametrize("failure", [Failure("OSError", {"message": "x"}), Failure("ApiError", {})])
def test_a_failure_that_is_none_of_ours_is_refused(failure: Failure) -> None:
    with pytest.raises(BadFrame):
        read_failure(write(failure))


READABLE: list[object] = [
    *(question for question, _ in ANSWERS),
    Embed.of(1, "key", 3, [np.ones(3, np.int32), np.ones(2, np.int32)]),
    EngineState(True, [ModelState(True, False, 7)], True),
    CannotStart("why"),
]


@given(st.data())
def test_what_was_damaged_on_its_way_is_a_message_or_refused(data: st.DataObject) -> None:
    content = bytearray(write(data.draw(st.sampled_from(READABLE))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    check_refused_or_read(bytes(content[:cut]))


@given(st.binary(max_size=200))
def test_nonsense_is_refused(content: bytes) -> None:
    check_refused_or_read(content)


@pytest.mark.parametrize(
    "content",
    [b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff"],
    ids=["list", "bytes", "nested", "map"],
)
def test_lengths_that_cannot_be_are_refused_before_there_is_memory_for_them(content: bytes) -> None:
    begin = write(EngineState())[:-2]  # before the models
    samples = write(SamplesOfOthers([]))[:-1]
    for told in (content, begin + content, samples + content):
        with pytest.raises(BadFrame):
            read_message(told)
    with pytest.raises(BadFrame):
        read_answer(AskSamples(), content)
    with pytest.raises(BadFrame):
        read_failure(b"\x92\xa1x" + content)


def check_refused_or_read(content: bytes) -> None:
    """Nothing but BadFrame may come out of reading; a token id's message may still be refused."""
    for read in (read_message, read_failure, lambda told: read_answer(AskSamples(), told)):
        try:
            found = read(content)
            if isinstance(found, Embed):
                found.sequences()
        except BadFrame:
            pass


def test_every_setting_arrives_with_its_secrets(registry: Registry, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "host": "::1",
        "model": ["one", "two"],
        "lazy": True,
        "unload_after_s": 2.5,
        "data_dir": tmp_path,
        "api_key": ["sk-1", "sk-2"],
        "api_key_file": tmp_path / "keys",
        "database_url": "postgresql://me:secret@host/name",
        "threads": 3,
        "frontends": 4,
    }
    welcome = Welcome(Settings(**given), served_by(registry))
    assert read_message(write(welcome)) == welcome
    assert "sk-1" not in repr(welcome)
    assert "secret" not in repr(welcome)
