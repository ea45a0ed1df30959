from __future__ import annotations

import pytest

from server.engine.served_models import Phase, ServedModels
from server.errors import Draining, ModelLoading, ModelNotFound, SettingError
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN


async def test_cards_with_one_base_share_one_engine_and_its_session() -> None:
    models = ServedModels.find(Settings())
    await models.load()
    plain, turned = models.resolve(PLAIN), models.resolve(MATRYOSHKA)
    assert plain.engine is turned.engine
    assert plain.rotation is None
    assert turned.rotation is not None
    models.close()
    models.join()


async def test_work_is_taken_only_between_loading_and_draining() -> None:
    models = ServedModels.find(Settings(model=[PLAIN]))
    with pytest.raises(ModelLoading):
        models.resolve(PLAIN)
    with pytest.raises(ModelNotFound):
        models.resolve(MATRYOSHKA)
    await models.load()
    assert models.resolve(PLAIN).card.name == PLAIN
    models.drain()
    with pytest.raises(Draining):
        models.resolve(PLAIN)
    models.close()
    models.join()


async def test_a_server_told_to_stop_while_loading_does_not_turn_ready() -> None:
    models = ServedModels.find(Settings(model=[PLAIN]))
    models.drain()
    await models.load()
    assert models.phase is Phase.DRAINING
    models.close()
    models.join()


def test_own_token_ids_are_asked_for_served_models_only() -> None:
    with pytest.raises(SettingError, match=f"model_token_ids: {MATRYOSHKA} is not a served model"):
        ServedModels.find(Settings(model=[PLAIN], model_token_ids=[MATRYOSHKA]))
