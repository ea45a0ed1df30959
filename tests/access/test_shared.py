from __future__ import annotations

import logging
from pathlib import Path

import pytest

from server.access.access import Access
from server.access.shared import Shared
from server.settings import Settings


async def test_whatever_goes_wrong_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(Settings(database_url=f"sqlite:///{tmp_path / 'keys.db'}"))
    shared = access._shared
    assert isinstance(shared, Shared)

    def fail() -> str:
        raise ValueError("nobody thought of it")

    with monkeypatch.context() as broken:
        broken.setattr(shared._store, "version", fail)
        await shared._sync()
    assert set(access.troubles()) == {"database"}
    assert "nobody thought of it" in caplog.text
    await shared._sync()
    assert access.troubles() == {}
    assert caplog.records[-1].levelno == logging.WARNING
    await access.close()
