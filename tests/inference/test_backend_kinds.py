"""What computes a card where, in which numbers, and what its fingerprint says of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from server.catalog.card import Card, Precision
from server.errors import SettingError
from server.inference import backend_kinds
from server.inference import placement as placement_module
from server.inference.backend import LoadOptions
from server.inference.backend_kinds import KINDS, BackendKind, choose_backend, dtypes_of, kinds_on
from server.inference.loader import load_encoder
from server.inference.placement import find_placement
from tests.fakes import FAKE_DIM, FakeBackend

ONNX, TORCH = "server.inference.onnx_backend", "server.inference.torch_backend"
GPU = ("cuda:0",)


def without_torch(card: Card) -> Card:
    facts = {name: getattr(card, name) for name in Card.model_fields}
    return Card.model_construct(**facts | {"torch": None})


def test_each_device_has_its_row(plain_card: Card) -> None:
    assert choose_backend(plain_card, ("cpu",)).kind.module == ONNX
    assert choose_backend(plain_card, GPU).kind.module == TORCH
    assert choose_backend(plain_card, ("cuda:0", "cuda:1")).devices == ("cuda:0", "cuda:1")


def test_on_a_gpu_the_card_says_in_which_numbers_and_the_fingerprint_tells(
    plain_card: Card, matryoshka_card: Card
) -> None:
    for card in (plain_card, matryoshka_card):
        computed = choose_backend(card, GPU).card
        assert computed.dtype == computed.encoder_card.dtype == "float16"
        assert computed.fingerprint != card.fingerprint
        assert computed.model_dump(exclude={"dtype", "base"}) == card.model_dump(
            exclude={"dtype", "base"}
        )


def test_float32_has_the_same_fingerprint_everywhere(matryoshka_card: Card) -> None:
    computed = choose_backend(matryoshka_card, GPU, "float32").card
    assert computed.fingerprint == matryoshka_card.fingerprint
    assert choose_backend(matryoshka_card, ("cpu",)).card is matryoshka_card


def test_who_asks_for_a_dtype_is_above_the_card(plain_card: Card) -> None:
    assert choose_backend(plain_card, GPU, "bfloat16").card.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("capability", "float16", "expected"),
    [
        ((9, 0), 0.99999, "bfloat16"),
        ((8, 0), 0.99999, "bfloat16"),
        ((7, 5), 0.99999, "float16"),
        ((7, 0), 0.99999, "float16"),
        ((7, 5), 0.9990, "float32"),  # too far from the card's vectors
        ((7, 5), None, "float32"),  # overflowed when it was measured
        ((6, 1), 0.99999, "float32"),
    ],
)
def test_a_gpu_without_bfloat16_gets_float16_where_that_was_near_else_float32(
    plain_card: Card, capability: tuple[int, int], float16: float | None, expected: str
) -> None:
    assert plain_card.torch is not None
    measured = [Precision(dtype="bfloat16", min_cosine=0.9995)]
    if float16 is not None:
        measured.append(Precision(dtype="float16", min_cosine=float16))
    changed = plain_card.torch.model_copy(
        update={"dtype": "bfloat16", "precision": tuple(measured)}
    )
    card = plain_card.changed(torch=changed)
    choice = choose_backend(card, GPU, quick=dtypes_of(capability))
    assert choice.card.dtype == expected
    assert choice.instead_of == (None if expected == "bfloat16" else "bfloat16")
    asked = choose_backend(card, GPU, "float16", quick=dtypes_of(capability))
    assert (asked.card.dtype, asked.instead_of) == ("float16", None)


def test_a_card_that_lacks_what_a_gpu_needs_is_computed_on_the_cpu(plain_card: Card) -> None:
    choice = choose_backend(without_torch(plain_card), GPU, "float16")
    assert choice.on_cpu
    assert (choice.kind.module, choice.devices, choice.card.dtype) == (ONNX, ("cpu",), "float32")


def test_unless_the_gpu_was_insisted_on(plain_card: Card) -> None:
    card = without_torch(plain_card)
    choice = choose_backend(card, GPU, insist=True)
    assert not choice.on_cpu
    assert (choice.kind.module, choice.devices, choice.card) == (TORCH, GPU, card)


def test_a_card_that_names_no_graph_is_left_to_loading_which_says_so(plain_card: Card) -> None:
    card = plain_card.model_copy(update={"files": {}, "reference": None, "torch": None})
    assert choose_backend(card, ("cpu",)).kind.module == ONNX


def test_a_number_type_that_no_row_computes_on_the_cpu_is_refused(plain_card: Card) -> None:
    with pytest.raises(SettingError, match="dtype: model all-MiniLM-L6-v2 is not computed in fl"):
        choose_backend(plain_card, ("cpu",), "float16")


def test_a_row_whose_library_is_not_there_is_passed_over_if_another_can_do_it(
    plain_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = choose_backend(plain_card, ("cpu",)).kind
    first = replace(onnx, module="server.inference.other_backend", extra="no_such_library")
    monkeypatch.setattr(backend_kinds, "KINDS", (first, onnx))
    assert choose_backend(plain_card, ("cpu",)).kind is onnx
    monkeypatch.setattr(backend_kinds, "KINDS", (first,))
    assert choose_backend(plain_card, ("cpu",)).kind is first  # whose loading says what it lacks


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.module)
def test_a_row_keeps_what_the_table_says(kind: BackendKind, plain_card: Card) -> None:
    assert kind in kinds_on(kind.device_type)
    assert set(kind.files(plain_card)) <= set(plain_card.files)
    assert kind.default_dtype(plain_card) in kind.dtypes
    assert set(kind.min_cosines(plain_card)) <= set(kind.dtypes)


def test_a_further_backend_is_one_row_and_one_module(
    plain_card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend()

    def load_backends(
        card: Card, devices: Sequence[str], options: LoadOptions
    ) -> tuple[tuple[FakeBackend, ...], None]:
        assert (card.dtype, tuple(devices)) == ("bfloat16", ("cpu",))
        return (backend,), None

    module = SimpleNamespace(load_backends=load_backends)
    monkeypatch.setitem(sys.modules, "server.inference.quick_backend", module)
    row = replace(
        KINDS[0],
        module="server.inference.quick_backend",
        dtypes=("bfloat16",),
        min_cosines=lambda card: {"bfloat16": 0.9999},
    )
    monkeypatch.setattr(backend_kinds, "KINDS", (KINDS[0], row))
    monkeypatch.setattr(placement_module, "quick_dtypes", lambda: ("bfloat16",))
    placement = find_placement("cpu", "bfloat16")
    choice = placement.backend_for(plain_card)
    assert (choice.kind, choice.card.dtype) == (row, "bfloat16")
    assert choice.card.fingerprint != plain_card.fingerprint
    card = plain_card.model_copy(update={"embedding_dim": FAKE_DIM})
    assert load_encoder(card, placement, hash_files=False).backends == (backend,)
    assert choose_backend(plain_card, ("cpu",)).kind == KINDS[0]
    assert choose_backend(plain_card, ("cpu",), "float32").kind == KINDS[0]


def test_choosing_and_loading_import_only_the_library_of_the_row(plain_card: Card) -> None:
    code = f"""
import sys
from pathlib import Path
from server.catalog.registry import read_registry
from server.inference.backend_kinds import choose_backend
from server.inference.loader import load_encoder

def libraries():
    return [name for name in ("onnxruntime", "torch", "transformers") if name in sys.modules]

card = read_registry(Path({str(plain_card.folder.parent)!r})).resolve({plain_card.name!r})
assert choose_backend(card, ("cuda:0",)).card.dtype == "float16"
assert libraries() == []
load_encoder(card, hash_files=False)
assert libraries() == ["onnxruntime"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
