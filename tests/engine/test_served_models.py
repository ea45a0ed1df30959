from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from server.catalog.registry import Registry
from server.engine.interface import Phase
from server.engine.patience import Patience
from server.engine.replica import FAILURES_BEFORE_PROBE
from server.engine.served_models import MOST_FRONTENDS, ServedModels
from server.errors import (
    Draining,
    InferenceFailed,
    ModelFailing,
    ModelLoading,
    ModelNotFound,
    SettingError,
)
from server.inference.loader import Encoder
from server.inference.opening import Opener
from server.inference.placement import Placement
from server.metrics import Metrics
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY, AppOver, engine_of
from tests.engine import embed, ids, wait_until
from tests.fakes import KILLS_THREAD, FakeBackend, FakeOpener


def metrics() -> Metrics:
    return Metrics(models=[PLAIN, MATRYOSHKA], encoders=[PLAIN])


def found(encoder: Encoder, **settings: Any) -> ServedModels:
    """The models of these settings, over a fake forward pass; nobody asks for their weights."""
    given = Settings(**{"check_files": "off", **settings})
    return ServedModels.find(given, opener=FakeOpener(given, encoder.tokenizer, FakeBackend()))


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
    states = {state.card.name: state.encoder_card.name for state in models.states()}
    assert states == {"again": "again", PLAIN: "again", MATRYOSHKA: "again", "short": "short"}
    models.close()
    models.join()


async def test_work_is_taken_only_between_loading_and_draining(encoder: Encoder) -> None:
    models = found(encoder, model=[PLAIN])
    with pytest.raises(ModelLoading):
        models.resolve(PLAIN)
    with pytest.raises(ModelNotFound):
        models.resolve(MATRYOSHKA)
    await models.load(metrics())
    assert models.resolve(PLAIN).card.name == PLAIN
    models.drain()
    with pytest.raises(Draining):
        models.resolve(PLAIN)
    models.close()
    models.join()


async def test_a_server_told_to_stop_while_loading_does_not_turn_ready(encoder: Encoder) -> None:
    models = found(encoder, model=[PLAIN])
    models.drain()
    await models.load(metrics())
    assert models.phase is Phase.DRAINING
    models.close()
    models.join()


async def test_a_model_that_fails_takes_no_work_until_it_computes_again(
    app_over: AppOver,
) -> None:
    backend = FakeBackend()
    app = await app_over(backend, patience=Patience(probe_interval_s=0.02), check_files="off")
    models = app.state.services.models
    engine = engine_of(app)
    backend.broken.set()
    for _ in range(FAILURES_BEFORE_PROBE):
        models.check_ready()
        with pytest.raises(InferenceFailed):
            await embed(engine, [ids(1)])
    with pytest.raises(ModelFailing):
        models.check_ready()
    with pytest.raises(ModelFailing), models.work(PLAIN):
        pass
    assert models.in_flight == 0
    backend.broken.clear()
    await asyncio.to_thread(wait_until, lambda: engine.sound)
    models.check_ready()


async def test_a_model_whose_only_worker_has_died_takes_no_work_until_it_is_replaced(
    app_over: AppOver,
) -> None:
    app = await app_over(FakeBackend(), patience=Patience(restart_delay_s=0.5), check_files="off")
    models = app.state.services.models
    engine = engine_of(app)
    with pytest.raises(InferenceFailed):
        await embed(engine, [ids(KILLS_THREAD)])
    await asyncio.to_thread(wait_until, lambda: not engine.sound)
    with pytest.raises(ModelFailing):
        models.check_ready()
    await asyncio.to_thread(wait_until, lambda: engine.sound)
    models.check_ready()
    assert (await embed(engine, [ids(7)])).tolist() == [[7, 1, 7]]


def test_own_token_ids_are_asked_for_served_models_only() -> None:
    with pytest.raises(SettingError, match=f"model_token_ids: {MATRYOSHKA} is not a served model"):
        ServedModels.find(Settings(model=[PLAIN], model_token_ids=[MATRYOSHKA], check_files="off"))


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
    models = ServedModels(Registry([]), Settings(), opener=Opener(Settings(), Placement(devices)))
    assert models.suited_frontends(cores) == suited
