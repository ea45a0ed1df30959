"""`scripts/prove/storage.py`, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.prove.storage import FILES, Site, attack

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("file moved away, then back", "its file is gone; keys stay as they are"),
        ("older copy moved over it", "another one since"),
    ],
)
def test_a_change_is_noticed_no_usage_is_lost_and_no_revoked_key_works(
    tmp_path: Path, name: str, state: str
) -> None:
    noticed, readyz, *others = attack(Site(tmp_path / "site"), *FILES[name]).split(" | ")
    assert noticed != "never"
    assert readyz.startswith(state)
    assert others == ["0 of 15", "401", "401"]
