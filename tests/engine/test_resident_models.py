from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from server.catalog.registry import Registry
from server.engine.offering import Offering
from server.engine.resident_models import MOST_FRONTENDS, ResidentModels
from server.errors import (
    SettingError,
)
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
