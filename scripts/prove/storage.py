"""Storage that is changed under a server: what it notices, keeps and says, as a table.

    python -m scripts.prove.storage           # two minutes

Starts servers and a PostgreSQL of its own on loopback, and ends them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

import httpx

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.usage_report import By, usage_by
from server.errors import DatabaseError, KeyNotFound
from tests.server_process import ServerProcess
from tests.services import Postgres

MODEL = "all-MiniLM-L6-v2"
PATIENCE_S = 15.0


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


def attack(site: Site, change: Callable[[Site], object], repair: Callable[[Site], object]) -> str:
    """Serve, change the storage, go on serving, put it right, end; a row of the table."""

    def asked(secret: str, user: str) -> httpx.Response:
        body = {"model": MODEL, "input": "one two three", "user": user}
        return http.post("/v1/embeddings", json=body, headers={"Authorization": f"Bearer {secret}"})

    def told() -> str:
        return str(http.get("/readyz").json().get("troubles", {}).get("database", ""))

    def until(condition: Callable[[], object]) -> str:
        begun_s = time.monotonic()
        while (passed_s := time.monotonic() - begun_s) < PATIENCE_S:
            if condition():
                return f"{passed_s:.1f} s"
            time.sleep(0.05)
        return "never"

    with (
        ServerProcess("--model", MODEL, "--database-url", site.url) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        asked(site.secret, "before")
        until(
            lambda: b"\nembedding_server_unwritten_usage_tokens 0" in http.get("/metrics").content
        )
        change(site)
        answers = [asked(site.secret, "since").json() for _ in range(3)]
        noticed, readyz = until(told), told()
        repair(site)
        until(lambda: not told().endswith("later"))
        then = told()
        before = asked(site.revoked, "revoked").status_code
        site.revoke("kept")
        until(lambda: asked(site.secret, "after").status_code != 200)
        after = asked(site.secret, "after").status_code
        server.stop()
        told_tokens = re.findall(r"not written: .*user='since' .*tokens=(\d+)", server.log())
    sent = sum(answer.get("usage", {}).get("total_tokens", 0) for answer in answers)
    lost = sent - sum(map(int, told_tokens)) - site.written_tokens()
    return f"{noticed} | {readyz or 'nothing'} | {then or 'nothing'} | {lost} of {sent} | {before} | {after}"


def main() -> None:
    """Print the table."""
    print(
        "| change | noticed | /readyz | once put right | tokens lost | revoked before | revoked after |"
    )
    print("|---|---|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as sites,
        tempfile.TemporaryDirectory() as folder,
        Postgres(Path(folder)) as postgres,
    ):
        for name, steps in {**FILES, **TABLES}.items():
            url = postgres.empty_database() if name in TABLES else ""
            print(f"| {name} | {attack(Site(Path(sites) / name, url), *steps)} |", flush=True)


if __name__ == "__main__":
    main()
