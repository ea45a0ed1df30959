"""What the tests of several files need of keys and databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from server.access.key_store import KeyStore
from server.access.keys import Key, Limits


def make_key(store: KeyStore, token_budget: int | None = None, name: str = "team") -> Key:
    key, _ = store.create(name, limits=Limits(token_budget=token_budget))
    return key


def lock(file: Path) -> Callable[[], None]:
    """Keep all others from writing until the returned function is called."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection.close
