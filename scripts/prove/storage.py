"""Storage that is changed under a server that serves: what it notices, keeps and says, as a table.

    python -m scripts.prove.storage           # a minute and a half

Starts servers and a PostgreSQL of its own on loopback, and ends them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.usage_report import By, usage_by
from server.errors import DatabaseError, KeyNotFound
from tests.server_process import ServerProcess
from tests.services import Postgres

MODEL = "all-MiniLM-L6-v2"
PATIENCE_S = 20.0
TOKENS = 5  # of one request


class Outcome(NamedTuple):
    """What came of one change."""

    name: str
    noticed_s: float | None
    readyz: str  # what it said of the database then
    lost_tokens: int  # answered since, neither in the database nor told line by line at the end
    revoked: str  # what the key is answered that was revoked before the change


class Site:
    """A database with two keys, one of them revoked after a copy was made, and a server on it."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder = folder / "data"
        self.folder.mkdir(exist_ok=True)
        self.file = self.folder / "keys.db"
        self.url = url or f"sqlite:///{self.file}"
        self.copy, self.other = folder / "copy", folder / "other"
        self.secret, self.revoked = self._make_keys(self.url)
        self._make_keys(f"sqlite:///{self.other}")
        shutil.copy(self.file, self.copy) if not url else self._dump()
        self._with_store(lambda store: store.revoke("revoked"))

    def _make_keys(self, url: str) -> list[str]:
        database = Database(url)
        made = [KeyStore(database).create(name)[1] for name in ("kept", "revoked")]
        database.close()
        return made

    def _with_store(self, act: Callable[[KeyStore], object], url: str = "") -> None:
        database = Database(url or self.url)
        act(KeyStore(database))
        database.close()

    def _dump(self) -> None:
        with self.copy.open("w") as out:
            subprocess.run(["pg_dump", "--clean", "--if-exists", self.url], stdout=out, check=True)

    def delete(self) -> None:
        for file in self.folder.glob("keys.db*"):
            file.unlink()

    def psql(self, *arguments: str) -> None:
        subprocess.run(["psql", "-q", *arguments, self.url], check=True, capture_output=True)
