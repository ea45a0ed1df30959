from __future__ import annotations

import pytest

from server.inference.loader import Encoder
from server.inference.probing import NotFinite, probe, warm_up
from tests.fakes import FAKE_DIM, FakeBackend


def test_the_known_input_must_give_finite_numbers() -> None:
    probe(FakeBackend())
    with pytest.raises(NotFinite):
        probe(FakeBackend(numb=True))


def test_a_warm_up_reaches_every_device(encoder: Encoder) -> None:
    backends = FakeBackend(), FakeBackend()
    warm_up(Encoder(encoder.tokenizer, backends, FAKE_DIM))
    assert all(len(backend.shapes) == 1 for backend in backends)
