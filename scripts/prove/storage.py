"""Storage that is changed under a server: what it notices, keeps and says, as a table.

    python -m scripts.prove.storage           # two minutes

Starts servers and a PostgreSQL of its own on loopback, and ends them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import httpx

from scripts.prove.clients import SERVE, embed
from scripts.prove.tables import options, print_table
from scripts.prove.watching import seconds_until
from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.usage_report import By, usage_by
from server.errors import DatabaseError, KeyNotFound
from tests.server_process import ServerProcess
from tests.services import Postgres


class Site:
    """A database with two keys, a copy from before one of them was revoked, and another one."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder, self.away, self.copy = folder / "data", folder / "away", folder / "copy"
        self.folder.mkdir(parents=True)
        self.file, self.other = self.folder / "keys.db", folder / "other"
        self.url = url or f"sqlite:///{self.file}"
        self.secret, self.revoked = self.make_keys()
        if url:
            self.copy.write_bytes(self.run("pg_dump", "--clean", "--if-exists"))
        else:
            shutil.copy(self.file, self.copy)
        self.make_keys(f"sqlite:///{self.other}")
        self.revoke("revoked")

    def make_keys(self, url: str = "") -> list[str]:
        with closing(Database(url or self.url)) as database:
            return [KeyStore(database).create(name)[1] for name in ("kept", "revoked")]

    def revoke(self, name: str) -> None:
        with suppress(KeyNotFound, DatabaseError), closing(Database(self.url)) as database:
            KeyStore(database).revoke(name)

    def written_tokens(self) -> int:
        with suppress(DatabaseError), closing(Database(self.url)) as database:
            return sum(row.tokens for row in usage_by(database, By.USER) if row.name == "since")
        return 0

    def run(self, program: str, *arguments: str) -> bytes:
        command = [program, *arguments, self.url]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def delete(self) -> None:
        for file in self.folder.glob("keys.db*"):
            file.unlink()

    def delete_and_make(self) -> None:
        self.delete()
        self.make_keys()

    def cut(self) -> None:
        shutil.copy(self.file, self.away)
        self.file.write_bytes(self.away.read_bytes()[:8192])

    def drop_and_make(self) -> None:
        self.run("psql", "-c", "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        self.make_keys()


# What is done, and what puts it right afterwards.
Steps = tuple[Callable[[Site], object], Callable[[Site], object]]
FILES: Mapping[str, Steps] = {
    "file deleted": (Site.delete, id),
    "file deleted, keys made again": (Site.delete_and_make, id),
    "file moved away, then back": (
        lambda s: s.file.rename(s.away),
        lambda s: s.away.rename(s.file),
    ),
    "file moved away, older copy in its place": (
        lambda s: s.file.rename(s.away),
        lambda s: s.copy.rename(s.file),
    ),
    "folder moved away, then back": (
        lambda s: s.folder.rename(s.away),
        lambda s: s.away.rename(s.folder),
    ),
    "another database moved over it": (lambda s: s.other.rename(s.file), id),
    "older copy moved over it": (lambda s: s.copy.rename(s.file), id),
    "older copy written into it": (lambda s: shutil.copyfile(s.copy, s.file), id),
    "file emptied": (lambda s: s.file.write_bytes(b""), id),
    "file cut short, then written again": (Site.cut, lambda s: shutil.copyfile(s.away, s.file)),
}
TABLES: Mapping[str, Steps] = {
    "PostgreSQL: older copy restored": (lambda s: s.run("psql", "-1", "-f", str(s.copy)), id),
    "PostgreSQL: dropped and made again": (Site.drop_and_make, id),
}


class Seen(NamedTuple):
    """A row of the table."""

    noticed_s: float | None
    readyz: str
    put_right: str  # what it says then
    lost: str  # tokens, of those that were answered
    revoked_before: int  # status for a key that was revoked after the older copy was made
    revoked_after: int


def attack(site: Site, change: Callable[[Site], object], repair: Callable[[Site], object]) -> Seen:
    """Serve, change the storage, go on serving, put it right, end."""

    def told() -> str:
        return str(http.get("/readyz").json().get("troubles", {}).get("database", ""))

    with (
        ServerProcess(*SERVE, "--database-url", site.url) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        embed(server, site.secret, user="before")
        seconds_until(
            lambda: b"\nembedding_server_unwritten_usage_tokens 0" in http.get("/metrics").content
        )
        change(site)
        answers = [embed(server, site.secret, user="since").json() for _ in range(3)]
        noticed, readyz = seconds_until(told), told()
        repair(site)
        seconds_until(lambda: not told().endswith("later"))
        then = told()
        before = embed(server, site.revoked, user="revoked").status_code
        site.revoke("kept")
        seconds_until(lambda: embed(server, site.secret, user="after").status_code != 200)
        after = embed(server, site.secret, user="after").status_code
        server.stop()
        told_tokens = re.findall(r"not written: .*user='since' .*tokens=(\d+)", server.log())
    sent = sum(answer.get("usage", {}).get("total_tokens", 0) for answer in answers)
    lost = sent - sum(map(int, told_tokens)) - site.written_tokens()
    return Seen(noticed, readyz or "nothing", then or "nothing", f"{lost} of {sent}", before, after)


def _rows() -> Iterator[tuple[object, ...]]:
    with (
        tempfile.TemporaryDirectory() as sites,
        tempfile.TemporaryDirectory() as folder,
        Postgres(Path(folder)) as postgres,
    ):
        for name, steps in {**FILES, **TABLES}.items():
            url = postgres.empty_database() if name in TABLES else ""
            yield name, *attack(Site(Path(sites) / name, url), *steps)


def main() -> None:
    """Print the table."""
    options(__doc__)
    columns = ("change", "noticed after, s", "/readyz", "once put right", "tokens lost",
               "revoked before", "revoked after")  # fmt: skip
    print_table(columns, _rows())


if __name__ == "__main__":
    main()
