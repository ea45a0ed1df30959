from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.catalog.registry import Registry
from server.engine.interface import ModelState, Phase
from server.frontends.channel import BadFrame
from server.frontends.messages import (
    EmbedQuestion,
    EngineState,
    RemoteState,
    Welcome,
    read_amount,
    read_counter,
    read_model,
    read_rotation,
    read_vectors,
    served_by,
    write_amount,
    write_counter,
    write_model,
    write_rotation,
    write_vectors,
)
from server.settings import Settings

TOKENS = st.lists(hnp.arrays(np.int32, st.integers(1, 40)), min_size=1, max_size=10)


@given(st.integers(0, 65535), st.text(max_size=100), TOKENS)
def test_a_question_arrives_as_it_was_asked(
    model: int, key: str, token_ids: list[np.ndarray[tuple[int], np.dtype[np.int32]]]
) -> None:
    key = key.encode("utf-8", "replace").decode()
    asked = EmbedQuestion.read(b"".join(EmbedQuestion(model, key, token_ids).write()))
    assert (asked.model, asked.key) == (model, key)
    assert [ids.dtype for ids in asked.token_ids] == [np.int32] * len(token_ids)
    assert [ids.tolist() for ids in asked.token_ids] == [ids.tolist() for ids in token_ids]


@given(st.binary(max_size=200))
def test_nonsense_is_no_question(content: bytes) -> None:
    with pytest.raises(BadFrame):
        EmbedQuestion.read(b"\0\0\2\0\xff\xff\xff\0" + content)


@given(st.data(), TOKENS)
def test_a_question_that_was_cut_or_lengthened_is_refused(
    data: st.DataObject, token_ids: list[np.ndarray[tuple[int], np.dtype[np.int32]]]
) -> None:
    whole = b"".join(EmbedQuestion(1, "key", token_ids).write())
    cut = data.draw(st.integers(0, len(whole) - 1))
    for content in (whole[:cut], whole + b"\1\0\0\0", whole + b"\1"):
        with pytest.raises(BadFrame):
            EmbedQuestion.read(content)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(5))), st.floats(0, 1e6))
def test_vectors_arrive_bit_for_bit(
    vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]], wait_s: float
) -> None:
    for sent in (vectors, np.asfortranarray(vectors)):
        arrived, waited_s, computed_s = read_vectors(
            b"".join(write_vectors(sent, wait_s, 0.25)), len(vectors)
        )
        assert arrived.dtype == np.float32
        assert (arrived.shape, arrived.tobytes()) == (vectors.shape, vectors.tobytes())
        assert (waited_s, computed_s) == (wait_s, 0.25)


def test_a_rotation_or_none_arrives_as_it_was() -> None:
    rotation = np.arange(9, dtype=np.float32).reshape(3, 3)
    for sent in (rotation, rotation.T):
        arrived = read_rotation(b"".join(write_rotation(sent)), 3)
        assert arrived is not None
        assert np.array_equal(arrived, sent)
    assert read_rotation(b"".join(write_rotation(None)), 3) is None


def test_models_and_counters_arrive_as_they_were() -> None:
    assert read_model(write_model(513)) == 513
    assert read_counter(write_counter(-2, 59.5)) == (-2, 59.5)
    assert read_amount(write_amount("a/ü", -7)) == ("a/ü", -7)
    for nonsense in (b"", b"x", b"xyz"):
        with pytest.raises(BadFrame):
            read_model(nonsense)
        with pytest.raises(BadFrame):
            read_amount(nonsense)


def test_the_state_arrives_as_it_was(registry: Registry) -> None:
    card = registry.cards[0]
    states = [ModelState(card, card, True, 7, sound=False), ModelState(card, card, False, None)]
    sent = EngineState.of(Phase.READY, states, drains_others=True)
    assert EngineState.read(sent.write()) == sent
    assert sent.models == [RemoteState(True, False, 7), RemoteState(False, True, None)]


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
    settings = Settings(**given)
    welcome = Welcome(settings, served_by(registry))
    assert Welcome.read(welcome.write()) == welcome
    assert "sk-1" not in repr(welcome)
    assert "secret" not in repr(welcome)
