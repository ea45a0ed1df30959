"""`scripts/prove/storage.py`, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.prove.storage import FILES, Site, attack

pytestmark = pytest.mark.server


def test_a_change_is_noticed_no_usage_is_lost_and_no_revoked_key_works(tmp_path: Path) -> None:
    steps = FILES["file moved away, older copy in its place"]
    seen = attack(Site(tmp_path / "site"), *steps)
    assert seen.noticed_s is not None
    assert seen.readyz.startswith("its file is gone; keys stay as they are")
    assert seen.put_right.startswith("another one since")
    assert seen[3:] == ("0 of 15", 401, 401)
