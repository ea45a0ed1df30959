"""The command line of the benchmark: reads what is asked, starts the targets, lets them take turns."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from scripts.benchmark import report
from scripts.benchmark.client import BadAnswer
from scripts.benchmark.results import Results, read_json, write_json
from scripts.benchmark.scenario import TABLE, Scenario
from scripts.benchmark.starting import CPU, PEERS, TORCH_CPU, start
from scripts.benchmark.targets import REPOSITORY, BenchError, Peer

INTERRUPTED, TERMINATED = 130, 143
RESULTS = "results.json"
LOCK = "embedding-server-bench.lock"


class _OneLineParser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_complain(message, 2))


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    text = "Measure the server's speed, beside others in the same run if wanted."
    parser = _OneLineParser(prog="bench.py", description=text)
    names = {kind: [row.name for row in _rows(kind)] for kind in ("cpu", "gpu")}
    every = list(dict.fromkeys(names["cpu"] + names["gpu"]))
    add = parser.add_argument
    text = f"run this (repeatable): {', '.join(names['cpu'])}; on GPUs {', '.join(names['gpu'])}"
    add("--only", action="append", choices=every, metavar="SCENARIO", help=text)
    text = "cpu, cuda (all GPUs), cuda:N, or torch-cpu: a smoke run of the scenarios for GPUs"
    add("--device", default=CPU, help=text)
    text = f"drive this as well (repeatable): {', '.join(PEERS)}; all of them without a name"
    add("--peer", action="append", nargs="?", const="all", choices=(*PEERS, "all"), help=text)
    add("--quick", action="store_true", help="a smoke run: little work, one round")
    add("--rounds", type=int, help="rounds of every scenario, instead of three or five")
    text = "flags for our server, as one text: --serve-args='--threads 1'"
    add("--serve-args", type=shlex.split, default=[], metavar="FLAGS", help=text)
    text = "drive a second server of ours with these flags"
    add("--against", type=shlex.split, metavar="FLAGS", help=text)
    text = "run the second server from this checkout"
    add("--against-checkout", type=_folder, metavar="FOLDER", help=text)
    text = "drive a second server of ours that asks for keys, counts limits and writes usage"
    add("--guarded", action="store_true", help=text)
    text = "where peers and their model are installed at first use (default: .bench)"
    add("--cache", type=_folder, default=REPOSITORY / ".bench", help=text)
    text = "folder for results.json and plots (default: docs/explanation/benchmarks; of a part, the cache)"
    add("--out", type=_folder, help=text)
    text = "the model's official folder, for sentence-transformers (default: fetched into --cache)"
    add("--st-folder", type=_folder, metavar="FOLDER", help=text)
    add("--markdown", action="store_true", help="print the tables as Markdown")
    text = "measure nothing: print the tables of this results.json"
    add("--tables-of", type=Path, metavar="FILE", help=text)
    asked = parser.parse_args(arguments)
    asked.kind = "cpu" if asked.device == CPU else "gpu"
    asked.only = asked.only or []
    absent = ", ".join(name for name in asked.only if name not in names[asked.kind])
    on_device, not_here = f"with --device {asked.device}", asked.kind == "gpu"
    wrong_device = re.fullmatch(rf"{CPU}|{TORCH_CPU}|cuda(:\d{{1,3}})?", asked.device) is None
    checkout = asked.against_checkout
    for flag, is_wrong, problem in (
        ("device", wrong_device, f"must be cpu, torch-cpu, cuda or cuda:N, not {asked.device}"),
        ("only", absent, f"{absent} is not there {on_device}"),
        ("peer", asked.peer and not_here, f"not {on_device}"),
        ("rounds", asked.rounds and not_here, f"not {on_device}"),
        ("rounds", asked.rounds is not None and asked.rounds < 1, "must be at least 1"),
        (
            "against-checkout",
            checkout and not (checkout / "server").is_dir(),
            "no checkout of this repository",
        ),
    ):
        if is_wrong:
            parser.error(f"argument --{flag}: {problem}")
    part = asked.quick or asked.only or asked.kind == "gpu"
    asked.out = asked.out or (
        asked.cache if part else REPOSITORY / "docs" / "explanation" / "benchmarks"
    )
    asked.peer = [name for name in PEERS if {name, "all"} & set(asked.peer or ())]
    asked.quick = asked.quick or asked.device == TORCH_CPU
    return asked


def _rows(kind: str) -> list[Scenario]:
    """What may be asked for."""
    return [row for row in TABLE if row.device == kind and not row.always]


def chosen_rows(asked: argparse.Namespace) -> list[Scenario]:
    """The scenarios of a run, in the table's order."""
    return [
        row
        for row in TABLE
        if row.device == asked.kind
        and (row.always or (row.name in asked.only if asked.only else not row.long))
    ]


def _folder(text: str) -> Path:
    return Path(text).resolve()


def run(asked: argparse.Namespace, results: Results, console: Console) -> list[str]:
    """Start the targets, let them take their turns, end them; tell what failed.

    On GPUs, where time is dear, what fails does not keep the rest from being run, and what was
    measured is written after each turn.
    """
    on_gpu, rows = asked.kind == "gpu", chosen_rows(asked)
    facts, failures = report.facts_of_run(sys.argv[1:]), []

    def succeeds(work: Callable[[], None], label: str = "") -> bool:
        try:
            work()
        except (BadAnswer, BenchError, OSError) as error:
            if not on_gpu:
                raise
            failures.append(f"{label}{error}")
            return False
        return True

    with contextlib.ExitStack() as stack:
        # Two benchmarks at a time would measure each other.
        stack.enter_context(FileLock(Path(tempfile.gettempdir(), LOCK), blocking=False))
        bench = start(asked, rows, results, stack)
        bench.targets = {n: one for n, one in bench.targets.items() if succeeds(one.wait_ready)}
        if on_gpu:
            torch = bench.targets["torch"]
            assert isinstance(torch, Peer)
            facts |= torch.ask("about") | {"steps_s": {}}
        # Whoever interrupts twice must not keep the targets from being ended.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        size = {"quick": asked.quick, "rounds": asked.rounds}
        turns = [turn for row in rows for turn in row.turns(bench, **size)]
        # Drawn seldom: it takes time from what is measured.
        for turn in track(turns, console=console, refresh_per_second=1):
            console.print(turn.label)
            began_s = time.perf_counter()
            succeeds(turn.run, f"{turn.label}: ")
            if on_gpu:
                facts["steps_s"][turn.label] = round(time.perf_counter() - began_s, 1)
                write_json(asked.out / RESULTS, facts, results)
    facts["goals"] = report.judged(results)
    write_json(asked.out / RESULTS, facts, results)
    return failures


def main() -> None:
    """Run the benchmark; exit code 2 for a mistake of the caller's, 1 for what failed."""
    asked = read_arguments()
    if asked.tables_of is not None:
        try:
            facts, results = read_json(asked.tables_of)
        except (OSError, ValueError, KeyError) as error:
            sys.exit(_complain(f"cannot read {asked.tables_of}: {error}", 2))
        print(report.origin(facts))
        sys.exit(_show(results, asked.markdown))
    results, failures = Results(), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        asked.out.mkdir(parents=True, exist_ok=True)
        failures = run(asked, results, Console(stderr=True))
    except Timeout:
        sys.exit(_complain("another benchmark runs on this machine; let it end first", 2))
    except BenchError as error:
        sys.exit(_complain(str(error), 2))
    except (BadAnswer, OSError) as error:
        sys.exit(_complain(str(error), 1))
    except KeyboardInterrupt:  # what was measured is shown, but no file replaced
        _show(results, asked.markdown)
        sys.exit(_complain("interrupted", INTERRUPTED))
    if asked.kind == "cpu":
        from scripts.benchmark import plots  # with matplotlib, which GPU machines may lack

        plots.draw(asked.out, results)
    else:
        print(report.origin(read_json(asked.out / RESULTS)[0]))
    _show(results, asked.markdown)
    for failure in failures:
        _complain(failure, 1)
    sys.exit(min(1, len(failures)))


def _show(results: Results, markdown: bool) -> int:
    for table in report.tables(results):
        if markdown:
            print(table)
        else:
            Console().print(Markdown(table))
    return 0


def _complain(text: str, code: int) -> int:
    print(f"bench: {text}", file=sys.stderr)
    return code
