from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from server.catalog.card import Card
from server.catalog.registry import Registry
from server.engine.engine import Engine
from server.engine.offering import Offering
from server.engine.resident_models import MOST_FRONTENDS, ResidentModels
from server.errors import (
    SettingError,
)
from server.inference.backend import Capacity
from server.inference.compilations import COMPILATIONS
from server.inference.loader import Encoder
from server.inference.opening import Opener
from server.inference.placement import Placement
from server.metrics import Metrics
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY
from tests.fakes import FakeBackend, FakeOpener


def metrics() -> Metrics:
    return Metrics(models=[PLAIN, MATRYOSHKA], encoders=[PLAIN])


def found(encoder: Encoder, **settings: Any) -> Offering:
    """The models of these settings, over a fake forward pass; nobody asks for their weights."""
    given = Settings(**{"check_files": "off", **settings})
    opener = FakeOpener(given, encoder.tokenizer, FakeBackend())
    return Offering(ResidentModels.find(given, opener=opener))


async def test_cards_with_one_base_share_one_engine_and_its_session(encoder: Encoder) -> None:
    models = found(encoder)
    await models.load(metrics())
    plain, turned = models.resolve(PLAIN).loaded, models.resolve(MATRYOSHKA).loaded
    assert plain is not None
    assert turned is not None
    assert plain.engine is turned.engine
    assert plain.rotation is None
    assert turned.rotation is not None
    models.close()
    models.join()


class SharedGpu(FakeOpener):
    """Two models on one GPU; the one that is read first finds the memory of both."""

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        super().__init__(settings, encoder.tokenizer, FakeBackend())
        self.placement = Placement(("cuda:0",))
        self.done: list[str] = []

    def open_encoder(self, card: Card) -> Encoder:
        capacity = Capacity(4096, 1e6, 2, recorded_bytes=7_000_000, refused_shapes=3)
        self.done.append("read")
        return dataclasses.replace(super().open_encoder(card), capacity=capacity)

    def measure_again(self, encoder: Encoder) -> Encoder:
        assert encoder.capacity is not None
        self.done.append("measured")
        capacity = dataclasses.replace(encoder.capacity, batch_tokens=512)
        return dataclasses.replace(encoder, capacity=capacity)


@pytest.mark.parametrize("lazy", [False, True])
async def test_budgets_on_a_gpu_are_found_again_when_the_last_model_is_there(
    encoder: Encoder, tmp_path: Path, lazy: bool
) -> None:
    imported_again(tmp_path / "models", "short", max_input_tokens="64")
    names = [PLAIN, "short"]
    settings = Settings(check_files="off", model=names, data_dir=tmp_path, lazy=lazy)
    opener = SharedGpu(settings, encoder)
    models = Offering(ResidentModels.find(settings, opener=opener))
    shown = Metrics(names, names)
    await models.load(shown)
    if lazy:  # there is no last one
        assert opener.done == []
    else:
        assert opener.done == ["read", "read", "measured", "measured"]
        loaded = models.resolve(PLAIN).loaded
        assert loaded is not None
        assert isinstance(loaded.engine, Engine)
        assert loaded.engine._queue._budget.tokens == 512
        page = shown.page().decode()
        assert f'recorded_passes_bytes{{model="{PLAIN}"}} 7e+06' in page
        assert f'refused_shapes{{model="{PLAIN}"}} 3.0' in page
    models.close()
    models.join()


async def test_what_torch_compiles_while_requests_wait_is_counted(encoder: Encoder) -> None:
    models, shown = found(encoder), metrics()
    await models.load(shown)
    with COMPILATIONS.expected():
        COMPILATIONS.note()
    assert "serving_compilations_total 0.0" in shown.page().decode()
    COMPILATIONS.note()
    assert "serving_compilations_total 1.0" in shown.page().decode()
    models.close()
    models.join()


def imported_again(place: Path, name: str, **changes: str) -> None:
    """A copy of the plain model's card in a folder of its own."""
    (place / name).mkdir(parents=True)
    card = (REPOSITORY / "models" / PLAIN / "card.toml").read_text()
    card = card.replace(f'name = "{PLAIN}"', f'name = "{name}"')
    for key, value in changes.items():
        card = f"{key} = {value}\n" + re.sub(rf"^{key} = .*\n", "", card, flags=re.MULTILINE)
    (place / name / "card.toml").write_text(card)


async def test_cards_with_equal_files_share_one_engine_wherever_they_lie(
    encoder: Encoder, tmp_path: Path
) -> None:
    imported_again(tmp_path / "models", "again", prompts='{ query = "query: " }')
    imported_again(tmp_path / "models", "short", max_input_tokens="64")
    names = ["again", PLAIN, MATRYOSHKA, "short"]
    models = found(encoder, model=names, data_dir=tmp_path)
    assert [card.name for card in models.encoder_cards] == ["again", "short"]
    await models.load(Metrics(names, [card.name for card in models.encoder_cards]))
    engines = {}
    for name in names:
        loaded = models.resolve(name).loaded
        assert loaded is not None
        engines[name] = loaded.engine
    assert engines["again"] is engines[PLAIN] is engines[MATRYOSHKA]
    assert engines["short"] is not engines["again"]
    encoders = {model.card.name: model.encoder_card.name for model in models.models}
    assert encoders == {"again": "again", PLAIN: "again", MATRYOSHKA: "again", "short": "short"}
    models.close()
    models.join()


def test_own_token_ids_are_asked_for_served_models_only() -> None:
    with pytest.raises(SettingError, match=f"model_token_ids: {MATRYOSHKA} is not a served model"):
        ResidentModels.find(
            Settings(model=[PLAIN], model_token_ids=[MATRYOSHKA], check_files="off")
        )


@pytest.mark.parametrize(
    ("devices", "cores", "suited"),
    [
        (("cpu",), 64, 1),
        (("cuda:0",), 1, 1),
        (("cuda:0",), 7, 3),
        (("cuda:0", "cuda:1"), 64, MOST_FRONTENDS),
    ],
)
def test_a_gpu_is_fed_by_half_of_the_cores(
    devices: tuple[str, ...], cores: int, suited: int
) -> None:
    models = ResidentModels(Registry([]), Settings(), opener=Opener(Settings(), Placement(devices)))
    assert models.suited_frontends(cores) == suited
