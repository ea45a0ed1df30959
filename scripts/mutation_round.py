"""Show what the tests see: put small faults into server/, one at a time, and run the room's tests.

Tests that became faster may have become blind, and a green run does not tell. So the same faults
(mutants) are tried on the tree before and on the tree after, and the killed shares are compared:

    mutation_round.py choose --seed 13 --count 160 --out mutants.json
    mutation_round.py run mutants.json --tree BEFORE --python BEFORE/.venv/bin/python --out b.jsonl
    mutation_round.py run mutants.json --tree AFTER --python AFTER/.venv/bin/python --out a.jsonl
    mutation_round.py compare b.jsonl a.jsonl

A mutant is found again by its function, its source line and the text it replaces, wherever the line
stands then. `run` works in copies of the tree, appends each result at once, and when started again
goes on where it stopped. Linux only.
"""

from __future__ import annotations

import argparse
import ast
import bisect
import ctypes
import itertools
import json
import os
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

TOP_FLOOR, LEAST_A_ROOM = "top", 6  # the files of server/ itself count as one room
KILLED, SURVIVED, OUT_OF_TIME, NOT_FOUND = "killed", "survived", "out of time", "not found"
UNCHANGED = "unchanged"  # a mutant without a fault, which shows that the room's tests pass
OUT_OF_TIME_STATUS = 124  # of `guard`; pytest's are 0 to 5
MEMORY_BYTES = 8 << 30  # an endless loop may fill the machine before its time is over
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
LOG_CALLS = {"debug", "info", "warning", "error", "exception", "critical"}
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".bench", ".prove", "__pycache__", ".hypothesis", ".*_cache"
)
PYTEST = ["-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
PYTEST += ["--hypothesis-seed=0"]  # repeatable, with as many examples as the tree itself tries
ONE_WAY = {"==": "!=", "<": "<=", ">": ">=", "in": "not in", "is": "is not", "and": "or"}
ONE_WAY |= {"+": "-", "*": "//", "+=": "-=", "*=": "//="}
SWAPS = ONE_WAY | {after: before for before, after in ONE_WAY.items()}
OPERATOR = re.compile(rb"not\s+in|is\s+not|\w+|[^\w\s()]+")  # the first thing between two operands


@dataclass(frozen=True)
class Mutant:
    """One small fault; equal to another if it is the same fault, wherever its line stands."""

    file: str
    function: str = ""  # the qualified name of the function or class around it
    kind: str = UNCHANGED
    source: str = ""  # the line, stripped
    before: str = ""
    after: str = ""
    occurrence: int = 0  # among those of the file that are equal in all of the above
    line: int = field(default=1, compare=False)
    column: int = field(default=0, compare=False)  # in bytes, as ast counts

    @property
    def name(self) -> str:
        """What tells it from the others of a round."""
        return f"{self.file}:{self.line}:{self.column} {self.kind}"

    @property
    def room(self) -> str:
        """`engine` for server/engine/x.py."""
        _, *rooms, _ = Path(self.file).parts
        return rooms[0] if rooms else TOP_FLOOR


class Source:
    """A Python file's text, and the faults that can be put into it."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.lines = text.splitlines(keepends=True)
        self.starts = [0, *itertools.accumulate(map(len, self.lines))]

    def mutants(self, file: str) -> Iterator[Mutant]:
        """Every mutant of the file, always in the same order."""
        seen: Counter[Mutant] = Counter()
        for node, function, runs in _nodes(ast.parse(self.text)):
            for kind, start, end, after in (*self._swaps(node), *self._replacements(node, runs)):
                row = bisect.bisect_right(self.starts, start) - 1
                line, before = self.lines[row].decode().strip(), self.text[start:end].decode()
                place = {"line": row + 1, "column": start - self.starts[row]}
                mutant = Mutant(file, function, kind, line, before, after, **place)
                yield replace(mutant, occurrence=seen[mutant])
                seen[mutant] += 1

    def mutated(self, mutant: Mutant) -> bytes:
        """The text with the fault."""
        start = self.starts[mutant.line - 1] + mutant.column
        end = start + len(mutant.before.encode())
        return self.text[:start] + mutant.after.encode() + self.text[end:]

    def _swaps(self, node: ast.AST) -> Iterator[tuple[str, int, int, str]]:
        """Yield kind, first byte, the byte after the last, and what comes there."""
        match node:
            case ast.Compare(first, _, others):
                kind, operands = "comparison", [first, *others]
            case ast.BoolOp(_, operands):
                kind = "boolean"
            case ast.BinOp(first, _, second) | ast.AugAssign(first, _, second):
                kind, operands = "arithmetic", [first, second]
            case _:
                return
        for first, second in itertools.pairwise(operands):
            found = OPERATOR.search(self.text, self._span(first)[1], self._span(second)[0])
            swap = SWAPS.get(" ".join(found[0].decode().split())) if found else None
            if found and swap:
                yield kind, found.start(), found.end(), swap

    def _replacements(self, node: Any, runs: bool) -> Iterator[tuple[str, int, int, str]]:
        """Yield the same for what replaces a node; a statement only goes where it runs."""
        match node:
            case ast.Constant(bool(value)):
                yield "truth", *self._span(node), str(not value)
            case ast.Constant(int(value) | float(value)):
                yield "constant", *self._span(node), str(value + 1)
            case ast.Return(ast.expr() as value) if ast.unparse(value) != "None":
                yield "return", *self._span(value), "None"
            case ast.Break() | ast.Continue():
                yield (
                    "loop",
                    *self._span(node),
                    "continue" if isinstance(node, ast.Break) else "break",
                )
            case ast.UnaryOp(ast.Not()):
                start, end = self._span(node)
                yield "not removed", start, start + len("not"), ""
            case ast.If(test) | ast.IfExp(test) if not isinstance(test, ast.UnaryOp):
                start, end = self._span(test)
                yield "condition", start, end, f"not ({self.text[start:end].decode()})"
            case ast.Expr(ast.Call(ast.Attribute(attr=called))) if called in LOG_CALLS:
                return
            case ast.Expr(ast.Call() | ast.Await()) | ast.AnnAssign(value=ast.expr()) if runs:
                yield "statement", *self._span(node), "pass"
            case ast.Assign() | ast.AugAssign() | ast.Raise() if runs:
                yield "statement", *self._span(node), "pass"

    def _span(self, node: Any) -> tuple[int, int]:
        first, last = self.starts[node.lineno - 1], self.starts[node.end_lineno - 1]
        return first + node.col_offset, last + node.end_col_offset


def _nodes(node: ast.AST, name: str = "", runs: bool = False) -> Iterator[tuple[Any, str, bool]]:
    """Yield what counts: node, qualified name of what it is in, whether that is a function."""
    children: Iterable[ast.AST | None] = ast.iter_child_nodes(node)
    match node:
        case ast.FunctionDef("__repr__") | ast.JoinedStr() | ast.keyword("description" | "help"):
            return
        case ast.Call(ast.Attribute(attr=called)) if called in LOG_CALLS:
            return
        case ast.FunctionDef(own, given, body) | ast.AsyncFunctionDef(own, given, body):
            children = [*given.defaults, *given.kw_defaults, *body]  # neither annotations
            name, runs = f"{name}.{own}".lstrip("."), True
        case ast.ClassDef(own, body=body):  # nor decorators
            children, name, runs = body, f"{name}.{own}".lstrip("."), False
        case ast.AnnAssign(value=value):
            children = [value]
        case ast.If(ast.Name("TYPE_CHECKING")):
            return
    yield node, name, runs
    for child in filter(None, children):
        yield from _nodes(child, name, runs)


def choose(tree: Path, seed: int, count: int) -> list[Mutant]:
    """Choose mutants of all rooms by their lines of code, and inside a room of each kind in turn."""
    found: dict[str, dict[str, list[Mutant]]] = defaultdict(lambda: defaultdict(list))
    lines: Counter[str] = Counter()
    for path in sorted((tree / "server").rglob("*.py")):
        file, source = path.relative_to(tree).as_posix(), Source(path.read_bytes())
        for mutant in source.mutants(file):
            found[mutant.room][mutant.kind].append(mutant)
        code = [line for line in source.lines if line.strip() and line.strip()[:1] != b"#"]
        lines[Mutant(file).room] += len(code)
    quotas = dict.fromkeys(sorted(found), LEAST_A_ROOM)
    while sum(quotas.values()) < count:
        quotas[max(quotas, key=lambda room: lines[room] / quotas[room])] += 1
    chosen: dict[tuple[str, int], Mutant] = {}  # one a line
    for room, quota in quotas.items():
        chance = random.Random(f"{seed} {room}")
        kinds = [chance.sample(kind, len(kind)) for _, kind in sorted(found[room].items())]
        turns = itertools.zip_longest(*chance.sample(kinds, len(kinds)))
        end = len(chosen) + quota
        for mutant in filter(None, itertools.chain.from_iterable(turns)):
            if len(chosen) < end:
                chosen.setdefault((mutant.file, mutant.line), mutant)
    return list(chosen.values())


def in_order(tree: Path, file: str) -> list[str]:
    """A room's test files: the file's mirror, then those that name its module, then the others."""
    room, folder, path = Mutant(file).room, tree / "tests", Path(file)
    mirror = folder / path.relative_to("server").with_name(f"test_{path.name}")
    module = ".".join(path.with_suffix("").parts)
    tests = folder.glob("test_*.py") if room == TOP_FLOOR else (folder / room).rglob("test_*.py")
    ranked = sorted((test != mirror, module not in test.read_text(), test) for test in tests)
    # File by file: a folder would be run in pytest's own order, whatever stands before it.
    return [str(test.relative_to(tree)) for _, _, test in ranked]


class Copy:
    """A copy of a tree, in which one mutant after the other is tried."""

    def __init__(self, tree: Path, python: Path, limit_s: float) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mut"))
        self.folder.chmod(0o755)  # PostgreSQL runs as another user
        self.tree, self.scratch = self.folder / "tree", self.folder / "tmp"
        shutil.copytree(tree, self.tree, symlinks=True, ignore=NOT_COPIED)
        paths = {"PYTHONPATH": self.tree, "TMPDIR": self.scratch}
        paths["HYPOTHESIS_STORAGE_DIRECTORY"] = self.scratch
        self.environment = os.environ | {name: str(path) for name, path in paths.items()}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        code = "import importlib.util as u, server; print(u.find_spec('xdist'), server.__file__)"
        asked = [str(python), "-c", code]
        told = subprocess.check_output(asked, cwd=self.folder, env=self.environment, text=True)
        if str(self.tree) not in told:
            sys.exit(f"mutation_round: the tests would import another tree: {told}")
        self.command = [sys.executable, __file__, "guard", str(limit_s), str(python), *PYTEST]
        self.command += [] if told.startswith("None") else ["-n", "0"]

    def result(self, mutant: Mutant) -> dict[str, Any]:
        """What the tests of the mutant's room say."""
        path = self.tree / mutant.file
        source = Source(path.read_bytes() if path.exists() else b"")
        same = {one: one for one in [Mutant(mutant.file), *source.mutants(mutant.file)]}
        if (found := same.get(mutant)) is None:
            return {"outcome": NOT_FOUND, "seconds": 0.0, "by": ""}
        times = path.stat()
        path.write_bytes(source.mutated(found))
        # A time of its own, since Python takes old bytecode where time and size are the same.
        os.utime(path, (0, zlib.crc32(mutant.name.encode())))
        self.scratch.mkdir()
        started = time.monotonic()
        try:
            command = [*self.command, *in_order(self.tree, mutant.file)]
            run = subprocess.run(
                command, cwd=self.tree, env=self.environment, capture_output=True, check=False
            )
            seconds = round(time.monotonic() - started, 1)
        finally:
            path.write_bytes(source.text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            shutil.rmtree(self.scratch, ignore_errors=True)
        outcome = {0: SURVIVED, OUT_OF_TIME_STATUS: OUT_OF_TIME}.get(run.returncode, KILLED)
        by = re.search(r"^(FAILED|ERROR) .*", run.stdout.decode(errors="replace"), re.MULTILINE)
        return {"outcome": outcome, "seconds": seconds, "by": by[0] if by else ""}


def guard(limit_s: float, command: list[str]) -> int:
    """Run a command, and end it and all that it started, after so many seconds at the latest."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans become this process's children
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    try:
        # A session of its own, so that a mutant that signals its group does not reach this.
        return subprocess.Popen(command, start_new_session=True).wait(limit_s)
    except subprocess.TimeoutExpired:
        return OUT_OF_TIME_STATUS
    finally:
        while pids := [int(pid) for pid in children.read_text().split()]:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def run(mutants: list[Mutant], options: argparse.Namespace) -> None:
    """Try what has no result yet; first of all that the rooms' tests pass without a fault."""
    rooms = {mutant.room: str(Path(mutant.file).with_name("__init__.py")) for mutant in mutants}
    done = {row["name"] for row in rows_of(options.out)} if options.out.exists() else set()
    copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()

    def result(mutant: Mutant) -> dict[str, Any]:
        copy = copies.get()
        try:
            return {"name": mutant.name, "room": mutant.room, **asdict(mutant)} | copy.result(
                mutant
            )
        finally:
            copies.put(copy)

    with ExitStack() as stack:
        for _ in range(options.jobs):
            copies.put(copy := Copy(options.tree.resolve(), options.python, options.limit_s))
            stack.callback(shutil.rmtree, copy.folder)
        pool = ThreadPoolExecutor(options.jobs)
        stack.callback(pool.shutdown, cancel_futures=True)
        out = stack.enter_context(options.out.open("a"))
        for part in ([Mutant(file) for file in rooms.values()], mutants):
            todo = [pool.submit(result, mutant) for mutant in part if mutant.name not in done]
            for row in (future.result() for future in as_completed(todo)):
                print(f"{row['outcome']:12} {row['seconds']:5} s  {row['name']}", flush=True)
                if row["kind"] == UNCHANGED and row["outcome"] == KILLED:
                    sys.exit(f"mutation_round: {row['room']} fails without a fault: {row['by']}")
                out.write(json.dumps(row) + "\n")
                out.flush()


def rows_of(results: Path) -> list[dict[str, Any]]:
    """The rows that `run` has written."""
    return [json.loads(line) for line in results.read_text().splitlines()]


def comparison(before: Path, after: Path) -> Iterator[str]:
    """Lines: the killed shares of what was tried on both trees, what differs, what survives."""
    now = {row["name"]: row["outcome"] for row in rows_of(after)}
    rows = [row for row in rows_of(before) if row["kind"] != UNCHANGED]
    rows = [row | {"now": now.get(row["name"], "not tried")} for row in rows]
    tried = [row for row in rows if not {row["outcome"], row["now"]} & {NOT_FOUND, "not tried"}]
    for room in [*sorted({row["room"] for row in tried}), "all"]:
        mine = [row for row in tried if room in (row["room"], "all")]
        killed = [sum(row[when] == KILLED for row in mine) for when in ("outcome", "now")]
        shares = "  ".join(f"{count:4} ({count / len(mine):6.1%})" for count in killed)
        yield f"{room:12} {len(mine):4} tried, killed before and after: {shares}"
    differ = [row for row in rows if row["outcome"] != row["now"]]
    survive = [row for row in rows if row["outcome"] == row["now"] == SURVIVED]
    for title, listed in (("Differ", differ), ("Survive in both", survive)):
        yield f"\n{title}: {len(listed)}"
        for row in listed:
            yield f"{row['name']}, in {row['function']}: {row['outcome']}, then {row['now']}"
            yield f"    {row['source']}    [{row['before']} -> {row['after']}]"


def main() -> int:
    if sys.argv[1:2] == ["guard"]:
        return guard(float(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    choosing = commands.add_parser("choose", help="choose mutants of this checkout")
    choosing.add_argument("--seed", type=int, required=True)
    choosing.add_argument("--count", type=int, default=160)
    running = commands.add_parser("run", help="try them on a tree")
    running.add_argument("mutants", type=Path)
    running.add_argument("--tree", type=Path, required=True)
    running.add_argument("--python", type=Path, required=True, help="of the tree's environment")
    running.add_argument("--jobs", type=int, default=1, help="how many at a time")
    running.add_argument("--limit-s", type=float, default=60, help="seconds a mutant")
    for command in (choosing, running):
        command.add_argument("--out", type=Path, required=True)
    comparing = commands.add_parser("compare", help="compare the results of two runs")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "choose":
        tree = Path(__file__).resolve().parent.parent
        chosen = [asdict(mutant) for mutant in choose(tree, options.seed, options.count)]
        options.out.write_text(json.dumps(chosen, indent=1) + "\n")
    elif options.command == "run":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("mutation_round: stopped"))
        run([Mutant(**row) for row in json.loads(options.mutants.read_text())], options)
    else:
        print("\n".join(comparison(options.before, options.after)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
