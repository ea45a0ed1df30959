"""The command line of the benchmark: reads what is asked, starts the targets, runs the steps."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import functools
import math
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scripts.benchmark import endurance, gpu, machine, report, scenarios
from scripts.benchmark.client import BadAnswer
from scripts.benchmark.measuring import (
    FULL,
    GUARDED,
    MATRIX_PRODUCT,
    OURS,
    QUICK,
    Bench,
    Step,
    verify_and_warm_up,
)
from scripts.benchmark.peers import InProcess
from scripts.benchmark.processes import REPOSITORY, BenchError
from scripts.benchmark.results import Results
from scripts.benchmark.servers import (
    INFINITY_FLAGS,
    GuardedServer,
    Infinity,
    OwnServer,
    Server,
    fetch_model,
    install_infinity,
)

SCENARIOS = {
    "indexing": scenarios.indexing,
    "indexing-128": scenarios.indexing_128,
    "large-request": scenarios.large_request,
    "query": scenarios.query,
    "query-16": scenarios.busy_query,
    "query-under-indexing": scenarios.query_under_indexing,
    "concurrency": scenarios.concurrency,
    "load": scenarios.load,
    "profile": endurance.profile,
    "flood": endurance.flood,
    "soak": endurance.soak,
}
LONG = ("flood", "soak")  # six minutes more
PEERS = (*INFINITY_FLAGS, "sentence-transformers", "onnxruntime", "engine")
ALL = "all"
NOT_OF_ALL = "infinity-tuned"  # wants a compiler
CPU = "cpu"
NAMES = tuple(dict.fromkeys([*SCENARIOS, *gpu.SCENARIOS]))
INTERRUPTED, TERMINATED = 130, 143
RESULTS = "results.json"


class _OneLineParser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_complain(message, 2))


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = _OneLineParser(
        prog="bench.py",
        description="Measure the server's speed, beside others in the same run if wanted.",
    )
    add = parser.add_argument
    add(
        "--only",
        action="append",
        choices=NAMES,
        metavar="SCENARIO",
        help=f"run this scenario (repeatable): {', '.join(SCENARIOS)}; all but {' and '.join(LONG)}"
        f" by default; on GPUs {', '.join(gpu.SCENARIOS)}",
    )
    add(
        "--device",
        type=_device,
        default=CPU,
        help="cpu, cuda (all GPUs), cuda:N, or torch-cpu: the scenarios for GPUs, by torch on the "
        "CPU, as a smoke run (default: cpu)",
    )
    add("--long", action="store_true", help=f"by default, run {' and '.join(LONG)} as well")
    add(
        "--peer",
        action="append",
        nargs="?",
        const=ALL,
        choices=(*PEERS, ALL),
        metavar="PEER",
        help=f"drive this as well (repeatable): {', '.join(PEERS)}; all but {NOT_OF_ALL} without a "
        "name",
    )
    add("--quick", action="store_true", help="a smoke run: little work, one round")
    add("--rounds", type=_positive, help="rounds of every scenario, instead of three or five")
    add("--arrival-rate", type=_rate, help="the open loop's queries a second (scenario load)")
    add(
        "--serve-args",
        type=shlex.split,
        default=[],
        metavar="FLAGS",
        help="flags for our server, as one text: --serve-args='--threads 1'",
    )
    add(
        "--against",
        type=shlex.split,
        metavar="FLAGS",
        help="drive a second server of ours with these flags",
    )
    add(
        "--guarded",
        action="store_true",
        help="drive a second server of ours that asks for keys, counts limits and writes usage",
    )
    add(
        "--against-checkout",
        type=_checkout,
        metavar="FOLDER",
        help="run the second server from this checkout",
    )
    add(
        "--cache",
        type=Path,
        default=REPOSITORY / ".bench",
        help="where peers and their model are installed at first use (default: .bench)",
    )
    add(
        "--out",
        type=Path,
        help="folder for results.json and plots (default: docs/explanation/benchmarks; with --quick "
        "or --only the cache, so that the documented results stay)",
    )
    add(
        "--st-folder",
        type=Path,
        metavar="FOLDER",
        help="the model's official folder, for sentence-transformers; default: fetched into --cache",
    )
    add("--markdown", action="store_true", help="print the tables as Markdown")
    add(
        "--tables-of",
        type=Path,
        metavar="FILE",
        help="measure nothing: print the tables of this results.json",
    )
    asked = parser.parse_args(arguments)
    known = SCENARIOS if asked.device == CPU else gpu.SCENARIOS
    for name in asked.only or ():
        if name not in known:
            parser.error(f"argument --only: {name} is not there with --device {asked.device}")
    if asked.device != CPU:
        return _complete_for_gpus(parser, asked)
    if asked.only is None and asked.arrival_rate:
        asked.only = ["load"]
    if asked.out is None:
        partial = asked.quick or asked.only
        asked.out = asked.cache if partial else REPOSITORY / "docs" / "explanation" / "benchmarks"
    if asked.only is None:
        asked.only = [name for name in SCENARIOS if asked.long or name not in LONG]
    peers = asked.peer or []
    asked.peer = [peer for peer in PEERS if peer in peers or (ALL in peers and peer != NOT_OF_ALL)]
    return asked


def _complete_for_gpus(
    parser: argparse.ArgumentParser, asked: argparse.Namespace
) -> argparse.Namespace:
    for name in ("peer", "rounds", "arrival_rate", "long"):
        if getattr(asked, name):
            parser.error(f"argument --{name.replace('_', '-')}: not with --device {asked.device}")
    asked.only = [name for name in gpu.SCENARIOS if asked.only is None or name in asked.only]
    asked.out = asked.out or asked.cache
    return asked


def _device(text: str) -> str:
    if re.fullmatch(rf"{CPU}|{gpu.TORCH_CPU}|cuda(:\d{{1,3}})?", text) is None:
        raise argparse.ArgumentTypeError(f"must be cpu, torch-cpu, cuda or cuda:N, not {text}")
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError("must be over 0")
    return rate


def _checkout(text: str) -> Path:
    folder = Path(text).resolve()
    if not (folder / "server").is_dir():
        raise argparse.ArgumentTypeError(f"no checkout of this repository: {text}")
    return folder


def run(asked: argparse.Namespace, results: Results, console: Console) -> dict[str, Any]:
    """Start the targets, run the scenarios into `results`, end the targets; tell the facts."""
    packages = machine.package_versions()
    started = datetime.datetime.now(datetime.UTC).date().isoformat()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone_on_this_machine())
        with console.status("starting the servers and peers; peers are installed at first use"):
            servers, peers = _start(asked, stack)
            rate = stack.enter_context(InProcess(MATRIX_PRODUCT))
        # Whoever interrupts twice must not keep the targets from being ended.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        scale = QUICK if asked.quick else FULL
        if asked.rounds:
            scale = scale.with_rounds(asked.rounds)
        flags = _flags(asked, asked.serve_args)
        bench = Bench(servers, peers, rate, results, scale, asked.arrival_rate, flags)
        plans = [verify_and_warm_up, *(SCENARIOS[name] for name in asked.only)]
        _work([step for plan in plans for step in plan(bench)], console)
    facts = _facts(started, packages)
    if any(peer in INFINITY_FLAGS for peer in asked.peer):
        facts["infinity_packages"] = machine.infinity_versions(install_infinity(asked.cache))
    return facts


def run_on_gpus(
    asked: argparse.Namespace, results: Results, console: Console
) -> tuple[dict[str, Any], list[str]]:
    """The same on GPUs, where time is dear; tell the facts, and what failed.

    What fails does not keep the other scenarios from being run, and what was measured is written
    after each step.
    """
    failures: list[str] = []

    def start_own() -> list[Server]:
        try:
            return _start_own(asked, stack)
        except BenchError as error:
            failures.append(str(error))
            return []

    started = datetime.datetime.now(datetime.UTC).date().isoformat()
    facts = _facts(started, machine.package_versions())
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone_on_this_machine())
        with console.status("starting the servers and peers"):
            bench = gpu.start(asked, stack, start_own, results)
            facts |= bench.card.ask("about") | {"steps_s": {}}
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)

        def guarded(step: Step) -> None:
            began_s = time.perf_counter()
            try:
                step.run()
            except (BadAnswer, BenchError, OSError) as error:
                failures.append(f"{step.label}: {error}")
            facts["steps_s"][step.label] = round(time.perf_counter() - began_s, 1)
            report.write_json(asked.out / RESULTS, facts, results)

        steps = gpu.plan(bench, asked.only)
        _work([Step(step.label, functools.partial(guarded, step)) for step in steps], console)
    return facts, failures


def _facts(started: str, packages: dict[str, str]) -> dict[str, Any]:
    return {
        "date": started,
        "command": machine.command_shown(sys.argv[1:]),
        "commit": machine.commit(),
        "machine": machine.machine_facts(),
        "packages": packages,
    }


@contextlib.contextmanager
def _alone_on_this_machine() -> Iterator[None]:
    """Two benchmarks at a time would measure each other.

    Raises:
        BenchError: another one runs.
    """
    with Path(tempfile.gettempdir(), "embedding-server-bench.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BenchError("another benchmark runs on this machine; let it end first") from None
        yield


def _start(
    asked: argparse.Namespace, stack: contextlib.ExitStack
) -> tuple[list[Server], list[InProcess]]:
    servers = _start_own(asked, stack)
    peers: list[InProcess] = []
    for name in asked.peer:
        if name in INFINITY_FLAGS:
            environment, model = install_infinity(asked.cache), fetch_model(asked.cache)
            infinity = Infinity(name, INFINITY_FLAGS[name], environment, model)
            servers.append(stack.enter_context(infinity))
        elif name == "sentence-transformers":
            folder = str(asked.st_folder or fetch_model(asked.cache))
            peers.append(stack.enter_context(InProcess(name, folder)))
        else:
            peers.append(stack.enter_context(InProcess(name)))
    return servers, peers


def _start_own(asked: argparse.Namespace, stack: contextlib.ExitStack) -> list[Server]:
    """Our servers."""
    flags = _flags(asked, asked.serve_args)
    servers: list[Server] = [stack.enter_context(OwnServer(OURS, flags))]
    if asked.against is not None or asked.against_checkout is not None:
        checkout = asked.against_checkout or REPOSITORY
        others = flags if asked.against is None else _flags(asked, asked.against)
        servers.append(stack.enter_context(OwnServer("against", others, checkout)))
    if asked.guarded:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers.append(stack.enter_context(GuardedServer(GUARDED, flags, scratch)))
    return servers


def _flags(asked: argparse.Namespace, flags: Sequence[str]) -> list[str]:
    """With the device, which these flags may choose differently."""
    return ["--device", CPU if asked.device == gpu.TORCH_CPU else asked.device, *flags]


def _work(steps: Sequence[Step], console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Drawn seldom: it takes time from what is measured.
    with Progress(*columns, TimeElapsedColumn(), console=console, refresh_per_second=1) as progress:
        task = progress.add_task("", total=len(steps))
        for step in steps:
            progress.update(task, description=step.label)
            if not console.is_terminal:
                console.print(step.label)
            step.run()
            progress.advance(task)


def main() -> None:
    """Run the benchmark; exit code 2 for a mistake of the caller's."""
    asked = read_arguments()
    if asked.tables_of is not None:
        sys.exit(_show_file(asked.tables_of, markdown=asked.markdown))
    results = Results()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    failures: list[str] = []
    try:
        asked.out.mkdir(parents=True, exist_ok=True)
        if asked.device == CPU:
            facts = run(asked, results, Console(stderr=True))
        else:
            facts, failures = run_on_gpus(asked, results, Console(stderr=True))
    except BenchError as error:
        sys.exit(_complain(str(error), 2))
    except (BadAnswer, OSError) as error:
        sys.exit(_complain(str(error), 1))
    except KeyboardInterrupt:  # what was measured is shown, but no file replaced
        _show(results, markdown=asked.markdown)
        sys.exit(_complain("interrupted", INTERRUPTED))
    report.write_json(asked.out / RESULTS, facts, results)
    if asked.device == CPU:
        from scripts.benchmark import plots  # with matplotlib, which GPU machines may lack

        plots.draw(asked.out, results)
    else:
        print(report.origin(facts))
    _show(results, markdown=asked.markdown)
    for failure in failures:
        _complain(failure, 1)
    if failures:
        sys.exit(1)


def _show(results: Results, *, markdown: bool) -> None:
    for table in report.tables(results):
        if markdown:
            print(report.markdown(table))
        else:
            report.show(table, Console())


def _show_file(file: Path, *, markdown: bool) -> int:
    """Show what an earlier run wrote; the exit code."""
    try:
        facts, results = report.read_json(file)
    except (OSError, ValueError, KeyError) as error:
        return _complain(f"cannot read {file}: {error}", 2)
    print(report.origin(facts))
    _show(results, markdown=markdown)
    return 0


def _complain(text: str, code: int) -> int:
    print(f"bench: {text}", file=sys.stderr)
    return code
