"""The one way to open a model; what each part of it refuses is told by that part's own tests."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from server.catalog.card import Card, Dtype
from server.catalog.int8_recipe import Int8Recipe
from server.errors import CardError, ModelFileError, ModelLoadError, SettingError
from server.inference import onnx_backend, opening
from server.inference.backend import LoadOptions
from server.inference.loader import Encoder
from server.inference.opening import Opener, select_cards, worker_threads
from server.inference.placement import ON_CPU, Placement, find_placement
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY
from tests.low_precision import is_refused


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """The shipped models, free to be broken."""
    for name in (PLAIN, MATRYOSHKA):
        shutil.copytree(REPOSITORY / "models" / name, tmp_path / name)
    return tmp_path


def settings_of(models_dir: Path, **given: Any) -> Settings:
    return Settings.model_validate({"models_dir": models_dir, "threads": 1} | given)


def select(models_dir: Path, *names: str, check_files: bool = False) -> tuple[Card, ...]:
    return select_cards(settings_of(models_dir), names, ON_CPU, check_files=check_files).cards


def test_cards_come_in_the_order_of_their_names_as_they_are_computed_here(
    models_dir: Path,
) -> None:
    names, settings = [MATRYOSHKA, PLAIN], settings_of(models_dir)
    for placement, dtype in ((ON_CPU, "float32"), (Placement(("cuda:0",)), "float16")):
        cards = select_cards(settings, names, placement, check_files=True).cards
        assert [card.name for card in cards] == names
        assert [card.dtype for card in cards] == [dtype, dtype]


def test_a_file_that_is_missing_is_told_when_files_are_to_be_checked(models_dir: Path) -> None:
    (models_dir / PLAIN / "graph.onnx").unlink()
    assert select(models_dir, MATRYOSHKA)
    with pytest.raises(ModelFileError, match=f"missing or incomplete: {PLAIN}/graph.onnx"):
        select(models_dir, MATRYOSHKA, check_files=True)


def test_a_card_that_cannot_be_used_is_a_warning_unless_it_is_asked_for(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (models_dir / MATRYOSHKA / "card.toml").write_text("nonsense")
    with caplog.at_level(logging.WARNING):
        assert select(models_dir, PLAIN, check_files=True)
    assert "(left out)" in caplog.text
    with pytest.raises(CardError):
        select(models_dir, MATRYOSHKA)
    with pytest.raises(SettingError, match="not found"):
        select(models_dir, "nobody")


def test_an_opened_encoder_is_proved_and_a_loaded_one_is_not(models_dir: Path) -> None:
    reference = models_dir / PLAIN / "reference.safetensors"
    opener = Opener(settings_of(models_dir, check_files="off"))
    (card,) = select(models_dir, PLAIN)
    assert opener.open_encoder(card).embedding_dim == card.embedding_dim
    save_file({"embeddings": load_file(reference)["embeddings"][:, ::-1].copy()}, reference)
    with pytest.raises(ModelLoadError, match="computes other vectors than the card's reference"):
        opener.open_encoder(card)
    assert opener.load_encoder(card).embedding_dim == card.embedding_dim


@pytest.mark.parametrize(
    ("dtype", "looked_for"), [("float16", True), ("bfloat16", False), ("float32", False)]
)
def test_overflow_is_looked_for_in_float16(
    models_dir: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    dtype: Dtype,
    looked_for: bool,
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(opening, "check_range", lambda found, card: tried.append(card.name))
    monkeypatch.setattr(Opener, "load_encoder", lambda opener, card: encoder)
    opener = Opener(settings_of(models_dir), Placement(("cuda:0",), dtype))
    opener.open_encoder(select(models_dir, PLAIN)[0])
    assert tried == [PLAIN] * looked_for


@pytest.mark.parametrize(
    ("devices", "dtype", "recipe", "least"),
    [
        (("cpu",), "float32", None, 0.999),
        (("cpu",), "bfloat16", None, 0.9995),
        (("cpu",), "int8", None, 0.99),
        (("cpu",), "int8", Int8Recipe(min_cosine=0.996), 0.996),
        (("cpu",), "bfloat16", Int8Recipe(min_cosine=0.996), 0.9995),
        (("cuda:0",), "bfloat16", None, 0.999),
    ],
)
def test_how_near_vectors_must_be_at_the_start_depends_on_the_numbers_unless_it_is_set(
    plain_card: Card,
    devices: tuple[str, ...],
    dtype: Dtype,
    recipe: Int8Recipe | None,
    least: float,
) -> None:
    card = plain_card.changed(int8=recipe)
    placement = Placement(devices, dtype)
    assert Opener(Settings(), placement).min_parity(card) == least
    for wished in (0.5, 0.99999):
        assert Opener(Settings(min_parity=wished), placement).min_parity(card) == wished


def test_a_model_that_int8_moves_further_than_its_card_says_is_not_served(
    plain_card: Card, models_dir: Path
) -> None:
    if is_refused("int8"):
        return
    opener = Opener(settings_of(models_dir), find_placement("cpu", "int8"))
    assert opener.open_encoder(plain_card).embedding_dim == 384
    nearer = plain_card.changed(int8=Int8Recipe(min_cosine=0.9999))
    with pytest.raises(ModelLoadError, match=r"cosine 0.99\d+, at least 0.9999 is needed"):
        opener.open_encoder(nearer)


@pytest.mark.parametrize("check_files", ["full", "off"])
def test_a_rotation_is_hashed_as_the_setting_says(models_dir: Path, check_files: str) -> None:
    opener = Opener(settings_of(models_dir, check_files=check_files))
    (card,) = select(models_dir, MATRYOSHKA)
    save_file({"rotation": np.eye(384, dtype=np.float32)}, card.path("rotation.safetensors"))
    if check_files == "off":
        found = opener.open_rotation(card)
        assert found is not None
        assert (found == np.eye(384)).all()
    else:
        with pytest.raises(ModelFileError):
            opener.open_rotation(card)
    assert opener.open_rotation(card.encoder_card) is None


def test_threads_are_those_of_the_setting_or_one_a_core() -> None:
    assert worker_threads(Settings(threads=7)) == 7
    assert 1 <= worker_threads(Settings()) <= len(os.sched_getaffinity(0))


class Seen(Exception):
    """Ends a load."""


@pytest.mark.parametrize(("spread_alone", "wide_threads"), [(True, 3), (False, 1)])
def test_a_pass_alone_is_spread_over_the_cores_only_where_that_is_wished(
    spread_alone: bool, wide_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(card: Card, devices: Sequence[str], options: LoadOptions) -> None:
        assert options == LoadOptions(wide_threads, max_batch_tokens=512, worker_threads=3)
        raise Seen

    monkeypatch.setattr(onnx_backend, "load_backends", load)
    settings = Settings(threads=3, max_batch_tokens=512, models_dir=REPOSITORY / "models")
    opener = Opener(settings, spread_alone=spread_alone)
    (card,) = select_cards(settings, [PLAIN], ON_CPU, check_files=False).cards
    with pytest.raises(Seen):
        opener.load_encoder(card)
