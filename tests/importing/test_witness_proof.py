"""What is imported is the weights that lie there, or it is refused; torch is not asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from server.catalog.card import Card, Parity
from server.errors import ImportRefused
from server.importing.proof_texts import REFERENCE_TEXTS, WITNESS_TEXTS
from server.importing.witness.witness import Witness
from server.importing.witness_proof import (
    MOST_DIFFERENCE,
    beyond_rounding,
    compare_with_witness,
    prove_by_witness,
)
from server.inference.loader import Encoder

BIAS = "encoder.layer.5.output.dense.bias"


@pytest.fixture
def folder(plain_card: Card, tmp_path: Path) -> Any:
    """all-MiniLM-L6-v2's config and weights, free to be broken."""
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(plain_card.path(name), tmp_path / name)
    return SimpleNamespace(
        path=tmp_path,
        architecture="bert",
        config=json.loads((tmp_path / "config.json").read_text()),
        weights=("model.safetensors",),
        not_stock=None,
        transformer_weights=("model.safetensors",),
        head=SimpleNamespace(pooling="mean", dense=(), normalize=True),
    )


def change_weights(folder: Any, change: Callable[[dict[str, Any]], object]) -> None:
    stored = load_file(folder.path / "model.safetensors")
    change(stored)
    save_file(stored, folder.path / "model.safetensors")


def prove(
    folder: Any, encoder: Encoder, parity: Parity | None = None, **wishes: bool
) -> tuple[Parity | None, list[str]]:
    lines: list[str] = []
    wished = {"own_graph": True, "force": False} | wishes
    found = prove_by_witness(folder, encoder, ["q: ", ""], parity, lines.append, **wished)
    return found, lines


def test_a_sound_model_is_told_with_its_texts_and_figures(folder: Any, encoder: Encoder) -> None:
    found, lines = prove(folder, encoder)
    assert found is not None
    assert found.against == "witness (bert in numpy)"
    assert found.texts == len(WITNESS_TEXTS) + len(REFERENCE_TEXTS)
    assert found.min_cosine == 1
    assert found.max_difference <= 1e-6
    figures = f"smallest cosine 1.0000000, largest difference {found.max_difference:.1e}"
    assert lines == [f"witness (bert in numpy): {found.texts} texts: {figures}"]


def test_the_card_keeps_the_comparison_with_sentence_transformers(
    folder: Any, encoder: Encoder
) -> None:
    theirs = Parity(against="theirs", texts=1, min_cosine=1, max_difference=0)
    assert prove(folder, encoder, theirs)[0] is theirs


def test_weights_that_are_not_the_graphs_are_refused_and_force_keeps_them(
    folder: Any, encoder: Encoder
) -> None:
    def shift(stored: dict[str, Any]) -> None:
        stored[BIAS][0] += 2e-3

    change_weights(folder, shift)
    reason = r"the vectors are not those of the weights: largest difference .* at most 1e-05 is"
    with pytest.raises(ImportRefused, match=reason) as refused:
        prove(folder, encoder)
    assert refused.value.message.endswith("--force imports it all the same")
    _, lines = prove(folder, encoder, force=True)
    assert lines[1].startswith(f"warning: {folder.path}: the vectors are not those of the weights")
    # A publisher's graph may have been optimised; as far as that is from the weights it may be.
    prove(folder, encoder, own_graph=False)


def test_a_publishers_graph_of_other_weights_is_refused(folder: Any, encoder: Encoder) -> None:
    def shift(stored: dict[str, Any]) -> None:
        stored[BIAS][::2] += 1

    change_weights(folder, shift)
    with pytest.raises(ImportRefused, match="the publisher's graph does not compute the weights"):
        prove(folder, encoder, own_graph=False)


def test_force_does_not_get_past_a_missing_tensor(folder: Any, encoder: Encoder) -> None:
    change_weights(folder, lambda stored: stored.pop(BIAS))
    with pytest.raises(ImportRefused, match=f"the weights hold no {BIAS}"):
        prove(folder, encoder, force=True)


def test_a_setting_without_a_formula_is_refused_and_force_keeps_it(
    folder: Any, encoder: Encoder
) -> None:
    folder.config["position_embedding_type"] = "alibi"
    with pytest.raises(ImportRefused, match="position_embedding_type is 'alibi'"):
        prove(folder, encoder)
    found, lines = prove(folder, encoder, force=True)
    assert found is None
    assert lines[0].startswith(f"warning: {folder.path}: config.json: position_embedding_type is")


def test_what_has_no_witness_is_told(folder: Any, encoder: Encoder) -> None:
    folder.architecture = "longformer"
    theirs = Parity(against="theirs", texts=1, min_cosine=1, max_difference=0)
    assert prove(folder, encoder, theirs) == (
        theirs,
        ["no witness for longformer: compared with sentence-transformers only"],
    )
    assert prove(folder, encoder) == (None, ["no witness for longformer: compared with nothing"])
    # A folder whose own code is another model, or without weights: that has been told before.
    folder.architecture, folder.not_stock = "bert", "its own code"
    assert prove(folder, encoder) == (None, [])
    folder.not_stock, folder.weights = None, ()
    assert prove(folder, encoder) == (None, [])


def test_vectors_that_are_not_of_length_1_are_compared_by_their_length(
    plain_card: Card, encoder: Encoder
) -> None:
    witness = Witness.of_card(plain_card)
    assert witness is not None
    (backend,) = encoder.backends
    shift = np.zeros(384, np.float32)
    shift[0] = 5e-5
    stretched: Any = SimpleNamespace(
        tokenizer=encoder.tokenizer,
        backends=(SimpleNamespace(forward=lambda ids: backend.forward(ids) + shift),),
    )
    found = compare_with_witness(witness, stretched, [])
    assert found.max_difference == pytest.approx(5e-5, rel=0.05)
    assert beyond_rounding(found) is not None

    def embed(sequences: Any) -> Any:
        return 10 * witness.embed(sequences)

    longer: Any = SimpleNamespace(name="longer", folder=witness.folder, embed=embed)
    stretched.backends = (SimpleNamespace(forward=lambda ids: 10 * backend.forward(ids) + shift),)
    found = compare_with_witness(longer, stretched, [])
    assert found.max_difference == pytest.approx(5e-6, rel=0.1)
    assert beyond_rounding(found) is None


def test_what_is_not_finite_does_not_pass(plain_card: Card, encoder: Encoder) -> None:
    witness = Witness.of_card(plain_card)
    assert witness is not None
    (backend,) = encoder.backends
    broken: Any = SimpleNamespace(
        tokenizer=encoder.tokenizer,
        backends=(SimpleNamespace(forward=lambda ids: backend.forward(ids) * np.nan),),
    )
    assert beyond_rounding(compare_with_witness(witness, broken, [])) is not None
    assert MOST_DIFFERENCE == 1e-5
