from __future__ import annotations

import logging
from pathlib import Path

import pytest

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keyring import Keyring
from server.access.shared import Shared
from server.settings import Settings


async def test_whatever_goes_wrong_is_told_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    shared = Shared(Settings.model_validate({"database_url": url}), Keyring(()))
    database = Database(url)
    KeyStore(database).create("team")

    def write(models: str) -> None:
        with database.write() as connection:
            connection.exec_driver_sql(f"UPDATE embedding_server_keys SET models = '{models}'")

    write("what no server writes")
    for _ in range(2):
        await shared.sync()
        assert set(shared.troubles()) == {"database"}
    assert caplog.text.count("keys stay as they are") == 1
    write("[]")
    await shared.sync()
    assert shared.troubles() == {}
    assert caplog.records[-1].levelno == logging.WARNING
    await shared.close()
    database.close()
