from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.counters import Taken
from server.catalog.registry import Registry
from server.engine.interface import ModelState
from server.errors import ApiError
from server.frontends.framing import BadFrame
from server.frontends.messages import (
    Admit,
    Alive,
    CannotStart,
    Drain,
    Embed,
    EngineState,
    Failure,
    GiveBack,
    Message,
    Question,
    Ready,
    SamplesOfOthers,
    TakeIfFits,
    Welcome,
    served_by,
)
from server.frontends.wire import read_answer, read_failure, read_message, write
from server.settings import Settings
from tests.test_errors import EXAMPLES

SAMPLES = [("family", True, [("sample", (("label", "text"),), 0.5), ("other", (), float("inf"))])]


ANSWERS: list[tuple[Question[Any], object]] = [
    (Admit(1, "key", 7, 9), None),
    (TakeIfFits("a/ü", -7, 2**53), Taken(False, 2**40, 59.5)),
    (SamplesOfOthers(), [SAMPLES, []]),
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
    samples = write(Alive([]))[:-1]
    for told in (content, begin + content, samples + content):
        with pytest.raises(BadFrame):
            read_message(told)
    with pytest.raises(BadFrame):
        read_answer(SamplesOfOthers(), content)
    with pytest.raises(BadFrame):
        read_failure(b"\x92\xa1x" + content)


def check_refused_or_read(content: bytes) -> None:
    """Nothing but BadFrame may come out of reading; a token id's message may still be refused."""
    for read in (read_message, read_failure, lambda told: read_answer(SamplesOfOthers(), told)):
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
