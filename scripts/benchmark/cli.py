"""The command line of the benchmark: reads what is asked, has it run, shows the tables."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from filelock import Timeout
from rich.console import Console
from rich.markdown import Markdown

from scripts.benchmark import report
from scripts.benchmark.results import Results, read_json
from scripts.benchmark.running import FOLDER, MODEL_FOLDER, run
from scripts.benchmark.scenario import OWN, PEERS, TABLE
from scripts.benchmark.targets import REPOSITORY, BenchError
from server.errors import TextFileError

INTERRUPTED, TERMINATED = 130, 143


class _OneLineParser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(message, 2))


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    names = {k: [r.name for r in TABLE if r.device == k and not r.always] for k in ("cpu", "gpu")}
    text = "Measure the server's speed, beside others in the same run if wanted."
    parser = _OneLineParser(prog="bench.py", description=text)
    add = parser.add_argument
    text = f"run this (repeatable): {', '.join(names['cpu'])}; on GPUs {', '.join(names['gpu'])}"
    every = {name for known in names.values() for name in known}
    add("--only", action="append", default=[], choices=every, metavar="SCENARIO", help=text)
    text = "cpu, cuda, or torch-cpu: a smoke run of the scenarios for GPUs"
    add("--device", default="cpu", choices=("cpu", "cuda", "torch-cpu"), help=text)
    text = f"drive this as well (repeatable): {', '.join(PEERS)}; all of them without a name"
    add("--peer", action="append", nargs="?", const="all", choices=(*PEERS, "all"), help=text)
    text = "our server's, on a CPU (repeatable: they are compared in one run): " + ", ".join(OWN)
    add("--dtype", action="append", choices=tuple(OWN), help=text)
    text = "scored pairs for the scenario quality: text, text and score a line, with commas"
    add("--stsb", type=Path, metavar="FILE", help=text)
    add("--quick", action="store_true", help="a smoke run: little work, one round")
    add("--rounds", type=int, help="rounds of every scenario, instead of three or five")
    text = "drive a second server of ours with these flags, as one text: --against='--threads 1'"
    add("--against", type=shlex.split, metavar="FLAGS", help=text)
    text = "run the second server from this checkout"
    add("--against-checkout", type=Path, metavar="FOLDER", help=text)
    text = "drive a second server of ours that asks for keys, counts limits and writes usage"
    add("--guarded", action="store_true", help=text)
    text = "folder for results.json and plots (default: docs/explanation/benchmarks; of a part, .bench)"
    add("--out", type=Path, help=text)
    text = "the model's official folder (default: where `make bench-peers` puts it)"
    add("--st-folder", type=Path, default=MODEL_FOLDER, metavar="FOLDER", help=text)
    add("--markdown", action="store_true", help="print the tables as Markdown")
    text = "measure nothing: print the tables of this results.json"
    add("--tables-of", type=Path, metavar="FILE", help=text)
    asked = parser.parse_args(arguments)
    asked.kind = "cpu" if asked.device == "cpu" else "gpu"
    if absent := set(asked.only) - set(names[asked.kind]):
        given = ", ".join(sorted(absent))
        parser.error(f"argument --only: {given} is not there with --device {asked.device}")
    if asked.peer and asked.kind == "gpu":
        parser.error(f"argument --peer: not with --device {asked.device}")
    if asked.dtype and asked.kind == "gpu":
        parser.error(f"argument --dtype: not with --device {asked.device}")
    if asked.stsb and not asked.stsb.is_file():
        parser.error(f"argument --stsb: no file {asked.stsb}")
    if asked.rounds is not None and asked.rounds < 1:
        parser.error("argument --rounds: must be at least 1")
    if asked.against_checkout and not (asked.against_checkout / "server").is_dir():
        parser.error("argument --against-checkout: no checkout of this repository")
    part = asked.quick or asked.only or asked.kind == "gpu"
    whole = REPOSITORY / "docs" / "explanation" / "benchmarks"
    asked.out = asked.out or (FOLDER if part else whole)
    asked.dtype = asked.dtype or ["float32"]
    asked.peer = [name for name in PEERS if {name, "all"} & set(asked.peer or ())]
    asked.quick = asked.quick or asked.device == "torch-cpu"
    return asked


def main() -> None:
    """Run the benchmark; exit code 2 for a mistake of the caller's, 1 for what failed."""
    asked = read_arguments()
    if asked.tables_of is not None:
        try:
            facts, results = read_json(asked.tables_of)
        except (OSError, ValueError, KeyError) as error:
            sys.exit(_complain(f"cannot read {asked.tables_of}: {error}", 2))
        print(report.origin(facts))
        return _show(results, asked.markdown)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        facts, results, failures = run(asked)
    except Timeout:
        sys.exit(_complain("another benchmark runs on this machine; let it end first", 2))
    except (BenchError, OSError, TextFileError) as error:
        sys.exit(_complain(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted", INTERRUPTED))
    if asked.kind == "cpu":
        from scripts.benchmark import plots  # with matplotlib, which GPU machines may lack

        plots.draw(asked.out, results)
    else:
        print(report.origin(facts))
    _show(results, asked.markdown)
    for failure in failures:
        _complain(failure, 1)
    sys.exit(min(1, len(failures)))


def _show(results: Results, markdown: bool) -> None:
    for table in report.tables(results):
        if markdown:
            print(table)
        else:
            Console().print(Markdown(table))


def _complain(text: str, code: int) -> int:
    print(f"bench: {text}", file=sys.stderr)
    return code
