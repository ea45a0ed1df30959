from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keyring import Keyring
from server.access.keys import ANONYMOUS
from server.access.shared import Shared
from server.access.usage_report import By, usage_by
from server.metrics import Metrics
from server.settings import Settings
from tests.access import make_key
from tests.metrics_page import MetricsPage


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


async def test_usage_waits_for_a_file_that_is_gone_and_goes_into_the_one_that_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, away = tmp_path / "keys.db", tmp_path / "away.db"
    url = f"sqlite:///{file}"
    shared = Shared(Settings.model_validate({"database_url": url}), Keyring(()))
    metrics = Metrics([], [])
    shared.report_to(metrics)
    shared.ledger.count(ANONYMOUS, "m", "ann", 1)
    await shared.sync()
    file.rename(away)
    for tokens in (10, 100):
        shared.ledger.count(ANONYMOUS, "m", "ann", tokens)
        await shared.sync()
        state = "its file is gone; keys stay as they are, usage is written later"
        assert shared.troubles() == {"database": state}
        assert MetricsPage(metrics.page()).value("database_up") == 0
    away.rename(file)
    await shared.sync()
    assert shared.troubles() == {}
    assert usage_of(url) == [111]
    file.unlink()
    Database(url).close()
    shared.ledger.count(ANONYMOUS, "m", "ann", 1_000)
    await shared.sync()
    assert usage_of(url) == [1_000]
    assert "another one since" in shared.troubles()["database"]
    page = MetricsPage(metrics.page())
    assert page.value("database_up") == 1
    assert page.value("database_replacements_total") == 1
    assert "usage that is not written yet (1000 tokens) goes into it" in caplog.messages[-1]
    assert len(caplog.messages) == 3
    await shared.close()


async def test_usage_goes_into_a_database_that_comes_at_the_very_end(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    shared = Shared(Settings.model_validate({"database_url": url}), Keyring(()))
    shared.ledger.count(ANONYMOUS, "m", "ann", 7)
    (tmp_path / "keys.db").unlink()
    Database(url).close()
    await shared.close()
    assert usage_of(url) == [7]


async def test_usage_for_which_there_is_no_database_at_the_end_is_told_line_by_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    shared = Shared(Settings.model_validate({"database_url": url}), Keyring(()))
    (tmp_path / "keys.db").unlink()
    for user in ("ann", "bob"):
        shared.ledger.count(ANONYMOUS, "m", user, 7)
    await shared.close()
    assert caplog.text.count("usage not written: ") == 2
    assert not (tmp_path / "keys.db").exists()


async def test_budgets_that_were_taken_of_one_database_are_not_put_into_another(
    tmp_path: Path,
) -> None:
    file, copy = tmp_path / "keys.db", tmp_path / "copy.db"
    url = f"sqlite:///{file}"
    database = Database(url)
    key = make_key(KeyStore(database), token_budget=1_000)
    database.close()
    shutil.copyfile(file, copy)
    shared = Shared(Settings.model_validate({"database_url": url}), Keyring(()))
    await shared.budgets.take(key, 10)  # and as much in advance
    copy.rename(file)
    await shared.sync()
    await shared.close()
    database = Database(url)
    assert [one.spent_tokens for one in KeyStore(database).all()] == [0]
    database.close()


def usage_of(url: str) -> list[int]:
    database = Database(url)
    found = [row.tokens for row in usage_by(database, By.USER)]
    database.close()
    return found
