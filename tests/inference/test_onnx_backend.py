"""A text has one vector, on one core, over the whole machine and in any company."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from server.catalog.card import GRAPH_FILE, Card
from server.inference.backend import TokenIds
from server.inference.onnx_backend import WIDE_FROM_TOKENS, OnnxBackend
from tests.fakes import FakeSession
from tests.inference.company import differences

VOCABULARY = range(1_000, 30_000)  # whole words and pieces, none with a meaning of its own


@pytest.fixture(scope="module")
def narrow(plain_card: Card) -> OnnxBackend:
    return OnnxBackend(plain_card.path(GRAPH_FILE))


@pytest.fixture(scope="module")
def wide(plain_card: Card) -> OnnxBackend:
    return OnnxBackend(plain_card.path(GRAPH_FILE), wide_threads=2)


def batch(rows: int, tokens: int) -> list[TokenIds]:
    ids = np.random.default_rng(tokens).choice(VOCABULARY, (rows, tokens)).astype(np.int32)
    ids[:, 0] = 101
    return list(ids)


@pytest.mark.parametrize("tokens", [1, 12, 63, 64, 65, 100, 128, 200, 255, 256])
def test_spread_over_cores_a_single_text_has_the_same_vector(
    narrow: OnnxBackend, wide: OnnxBackend, tokens: int
) -> None:
    one_core = narrow.forward(batch(1, tokens))
    all_cores = wide.forward(batch(1, tokens), alone=True)
    assert all_cores.shape == (1, 384)
    assert all_cores.dtype == np.float32
    assert all_cores.tobytes() == one_core.tobytes()


def test_spread_over_cores_a_padded_micro_batch_has_the_same_vectors(
    narrow: OnnxBackend, wide: OnnxBackend
) -> None:
    lengths = (100, 90, 50, 3)
    ids = [text[:length] for text, length in zip(batch(4, 100), lengths, strict=True)]
    one_core, all_cores = narrow.forward(ids), wide.forward(ids, alone=True)
    assert all_cores.tobytes() == one_core.tobytes()


def test_only_what_is_alone_and_not_short_is_spread_over_cores(
    wide: OnnxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    monkeypatch.setattr(wide, "_wide", FakeSession("wide", used))
    monkeypatch.setattr(wide, "_session", FakeSession("narrow", used))
    for tokens, alone in [
        (WIDE_FROM_TOKENS, True),
        (WIDE_FROM_TOKENS, False),
        (WIDE_FROM_TOKENS - 2, True),
    ]:
        wide.forward(batch(1, tokens), alone=alone)
    wide.forward(batch(2, WIDE_FROM_TOKENS // 2), alone=True)
    wide.forward(batch(1, 256))
    assert used == ["wide", "narrow", "narrow", "wide", "narrow"]


def test_a_backend_of_one_core_computes_what_is_alone_too(narrow: OnnxBackend) -> None:
    alone = narrow.forward(batch(1, 128), alone=True)
    assert alone.tobytes() == narrow.forward(batch(1, 128)).tobytes()


def test_a_vector_has_the_same_bits_alone_and_in_any_company(plain_card: Card) -> None:
    found = list(differences(plain_card.path(GRAPH_FILE), VOCABULARY, (8, 24)))
    assert len(found) == 2 * 3 * 13
    assert {case: by for case, by in found if by} == {}


@pytest.mark.parametrize("alone", [False, True])
def test_texts_of_any_lengths_have_the_bits_that_each_has_alone(
    narrow: OnnxBackend, plain_card: Card, alone: bool
) -> None:
    four = OnnxBackend(plain_card.path(GRAPH_FILE), wide_threads=4)
    lengths = np.random.default_rng(0).permutation([1, 2, 3, 13, 14, 14, 14, 63, 64, 129, 130, 255])
    mixed = [batch(1, length)[0] for length in lengths]
    each = np.concatenate([narrow.forward([text]) for text in mixed])
    assert four.forward(mixed, alone=alone).tobytes() == each.tobytes()
    assert narrow.forward(mixed[::-1]).tobytes() == each[::-1].tobytes()


def test_many_threads_may_use_both_sessions_at_once(narrow: OnnxBackend, wide: OnnxBackend) -> None:
    lengths = [70, 90, 128, 200] * 4
    expected = [narrow.forward(batch(1, tokens)) for tokens in lengths]
    with ThreadPoolExecutor(4) as threads:
        got = threads.map(
            lambda case: wide.forward(batch(1, case[1]), alone=case[0] % 2 == 0),
            enumerate(lengths),
        )
        for vector, known in zip(got, expected, strict=True):
            assert vector.tobytes() == known.tobytes()


def test_the_ids_that_the_weights_hold_are_counted_without_a_word(
    narrow: OnnxBackend, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [narrow.count_embeddings(size) for size in (1, 30_522, 30_523, 50_000)] == [
        1, 30_522, 30_522, 30_522,
    ]  # fmt: skip
    assert capfd.readouterr() == ("", "")
