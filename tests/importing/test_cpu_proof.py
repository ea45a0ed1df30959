"""What an import says of bfloat16 and int8 on a CPU, and that a server heeds it.

On a processor without the instructions nothing is measured, and the tests assert that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.card import Card
from server.catalog.card_file import read_card, write_card
from server.catalog.int8_recipe import Int8Recipe
from server.errors import ModelLoadError, SettingError
from server.importing import cpu_proof, int8_choice
from server.importing.cpu_proof import TEXTS, prove_on_cpu
from server.importing.int8_choice import Kept, list_recipes
from server.importing.neighbour_texts import NEIGHBOUR_TEXTS
from server.importing.proof_texts import REFERENCE_TEXTS
from server.inference import placement
from server.inference.backend_kinds import BackendKind
from server.inference.cpu_instructions import quick_dtypes
from server.inference.direct import embed_texts
from server.inference.loader import Encoder, load_encoder
from server.inference.placement import find_placement

LOW = {"bfloat16", "int8"}


def lines_of(card: Card, encoder: Encoder) -> tuple[Card, list[str]]:
    lines: list[str] = []
    return prove_on_cpu(card, encoder, lines.append), lines


def without_figures(card: Card) -> Card:
    return card.changed(int8=None, cpu_precision=())


def test_the_texts_are_distinct_and_have_those_of_a_start_among_them() -> None:
    assert len(set(NEIGHBOUR_TEXTS)) == len(NEIGHBOUR_TEXTS) == 240
    assert len(set(TEXTS)) == len(TEXTS)
    assert set(REFERENCE_TEXTS) <= set(TEXTS)


def test_the_shipped_card_says_what_an_import_finds(plain_card: Card, encoder: Encoder) -> None:
    card, lines = lines_of(without_figures(plain_card), encoder)
    if not set(quick_dtypes()) >= LOW:
        assert "not tried: this processor has no instructions for" in lines[0]
        return
    assert card.int8 is not None
    assert plain_card.int8 is not None
    assert card.int8.facts == plain_card.int8.facts
    assert card.int8.min_cosine == pytest.approx(plain_card.int8.min_cosine, abs=0.001)
    assert card.computed_in("int8").fingerprint == plain_card.computed_in("int8").fingerprint
    shipped = {
        one.dtype: one
        for one in plain_card.cpu_precision
        if one.measured_on == cpu_proof.MEASURED_ON
    }
    assert [one.dtype for one in card.cpu_precision] == list(shipped) == ["bfloat16", "int8"]
    for found in card.cpu_precision:
        told = shipped[found.dtype]
        assert found.texts == told.texts
        assert found.mean_cosine == pytest.approx(told.mean_cosine, abs=2e-4)
        assert found.min_cosine == pytest.approx(told.min_cosine, abs=1e-3)
        assert found.neighbours_kept == pytest.approx(told.neighbours_kept, abs=0.004)
    assert lines[-1].startswith(
        "on a CPU: int8 with groups of 64; a server asks for a cosine of 0.99"
    )


def test_figures_are_those_of_the_vectors_that_a_server_gives(
    plain_card: Card, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = NEIGHBOUR_TEXTS[:24]  # among TEXTS there are ties, in which two proofs may differ
    monkeypatch.setattr(cpu_proof, "TEXTS", texts)
    monkeypatch.setattr(int8_choice, "FLOORS", Kept(0, 0, 0))
    card, lines = lines_of(without_figures(plain_card), encoder)
    exact = embed_texts(encoder, texts).astype(np.float64)
    for one in card.cpu_precision:
        computed = load_encoder(card, find_placement("cpu", one.dtype), hash_files=False)
        found = embed_texts(computed, texts).astype(np.float64)
        cosines = (exact * found).sum(axis=1)
        assert one.texts == 24
        assert one.min_cosine == pytest.approx(cosines.min(), abs=1e-6)
        assert one.mean_cosine == pytest.approx(cosines.mean(), abs=1e-6)
        near, others = (
            np.argsort(-(side @ side.T - 9 * np.eye(24)), axis=1)[:, :10] for side in (exact, found)
        )
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(near, others, strict=True)]
        assert one.neighbours_kept == pytest.approx(np.mean(shared), abs=2e-4)
    assert {one.dtype for one in card.cpu_precision} == set(quick_dtypes()) & LOW
    if not card.cpu_precision:
        assert "not tried: this processor has no instructions for" in lines[0]
    write_card(card, tmp_path)
    assert read_card(tmp_path) == card.changed(folder=tmp_path)


def test_where_nothing_keeps_enough_int8_is_not_offered_and_not_served(
    plain_card: Card, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_proof, "TEXTS", TEXTS[:12])
    monkeypatch.setattr(int8_choice, "FLOORS", Kept(1, 1, 1))
    monkeypatch.setattr(cpu_proof, "list_recipes", lambda matrices: list_recipes(matrices)[:1])
    card, lines = lines_of(without_figures(plain_card), encoder)
    if "int8" in quick_dtypes():
        assert lines[-1].startswith(
            "on a CPU: int8 is not offered: no recipe keeps enough (at least"
        )
        assert card.int8 is not None
        assert not card.int8.offered
        assert card.cpu_precision[-1].dtype == "int8"
    else:
        assert "no instructions for int8" in lines[0]
    card = card.changed(int8=Int8Recipe(offered=False))  # also where it was not tried
    monkeypatch.setattr(placement, "quick_dtypes", lambda: ("bfloat16", "int8"))
    on_cpu = find_placement("cpu", "int8")
    with pytest.raises(SettingError, match=f"model {card.name} is not offered in int8") as caught:
        on_cpu.backend_for(card)
    assert "bfloat16 and float32 it computes" in str(caught.value)
    variant = card.variant({"name": "variant", "description": "", "folder": card.folder})
    with pytest.raises(SettingError, match="model variant is not offered in int8"):
        on_cpu.backend_for(variant)
    for dtype in ("float32", "bfloat16"):
        assert find_placement("cpu", dtype).backend_for(card).card.dtype == dtype


def test_a_recipe_that_fails_is_told_and_the_next_one_tried(
    plain_card: Card, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exact = embed_texts(encoder, TEXTS[:12])
    broken: set[int] = set()

    def embed(card: Card, *_: object) -> NDArray[np.float32]:
        if card.dtype == "int8" and card.int8_recipe.group_size in broken:
            raise ModelLoadError("no such product\nin the library")
        return exact if card.dtype == "int8" else np.full_like(exact, np.nan)

    monkeypatch.setattr(placement, "quick_dtypes", lambda: ("bfloat16", "int8"))
    monkeypatch.setattr(cpu_proof, "TEXTS", TEXTS[:12])
    monkeypatch.setattr(cpu_proof, "embed", embed)
    broken.add(128)
    card, lines = lines_of(without_figures(plain_card), encoder)
    failed = "warning: on a CPU in int8, groups of 128: failed: no such product"
    assert failed in lines
    assert card.int8 is not None
    assert (card.int8.offered, card.int8.group_size) == (True, 64)
    assert [one.dtype for one in card.cpu_precision] == ["int8"]  # bfloat16 gave no numbers
    broken |= {64, 32}
    card, lines = lines_of(without_figures(plain_card), encoder)
    assert card.int8 is not None
    assert not card.int8.offered
    assert card.cpu_precision == ()
    assert lines[-1].startswith("on a CPU: int8 is not offered: no recipe keeps enough (at least")
    write_card(card, tmp_path)
    assert read_card(tmp_path) == card.changed(folder=tmp_path)


def test_a_graph_without_a_matrix_for_it_is_not_offered(
    plain_card: Card, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_proof, "TEXTS", TEXTS[:12])
    monkeypatch.setattr(cpu_proof, "list_recipes", lambda matrices: ())
    card, lines = lines_of(without_figures(plain_card), encoder)
    if "int8" in quick_dtypes():
        assert lines[-1] == (
            "on a CPU: int8 is not offered: the graph has no matrix of whole groups"
        )
        assert card.int8 == Int8Recipe(offered=False)
    else:
        assert "no instructions for int8" in lines[0]


def test_without_openvino_one_line_says_how_to_get_it(
    plain_card: Card, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BackendKind, "is_installed", property(lambda kind: kind.extra is None))
    monkeypatch.setattr(placement, "quick_dtypes", lambda: ("bfloat16", "int8"))
    card, lines = lines_of(without_figures(plain_card), encoder)
    assert card == without_figures(plain_card)
    (line,) = lines
    assert line.startswith("lower precision on a CPU: not tried: int8 on the CPU needs openvino: ")
    assert "openvino]" in line


def test_on_a_processor_without_the_instructions_one_line_says_so(
    plain_card: Card, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "quick_dtypes", tuple)
    card, lines = lines_of(without_figures(plain_card), encoder)
    assert card == without_figures(plain_card)
    (line,) = lines
    assert line.startswith(
        "lower precision on a CPU: not tried: this processor has no instructions for int8 ("
    )


def test_a_model_that_fails_in_them_is_imported_all_the_same(
    plain_card: Card, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of order\nin three places")

    monkeypatch.setattr(placement, "quick_dtypes", lambda: ("bfloat16", "int8"))
    monkeypatch.setattr(cpu_proof, "TEXTS", TEXTS[:12])
    monkeypatch.setattr(cpu_proof, "embed", fail)
    card, lines = lines_of(without_figures(plain_card), encoder)
    assert card == without_figures(plain_card)
    assert lines == ["warning: lower precision on a CPU: not tried further: out of order"]
