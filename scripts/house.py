"""Counts that tell whether the house is in order, each with its bound; `make check` runs it.

    python scripts/house.py            # the counts; exit code 1 if one is out of bounds

Reads the sources of `server/` and `scripts/`, imports none of them.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MIN_DOCSTRINGS = 0.95
# Files that may be longer, at most three, each with its reason.
LONG_FILES = {
    "server/errors.py": "every error once, in one tree that can be read and searched",
    "server/settings.py": "every setting once",
    "scripts/mutation_round.py": "one story that nobody else needs a part of",
}
# Fewer would cost figures of docs/explanation/benchmarks.md, or what keeps them right, or an attack:
# each of those is about a hundred lines of what it sends and what it looks at. Quality, three dtypes and
# eight peers took 300 of the benchmark's.
MAX_LINES = {"scripts": 6_150, "scripts/benchmark": 2_650, "scripts/prove": 2_110}
# Files that stay on the top floor; everything else has a room.
TOP_FLOOR = {"__init__", "__main__", "errors", "logs", "metrics", "settings"}
# Each of these names had two meanings or more; each has one definition now, or none.
ONE_MEANING = (
    "BATCH_TEXTS", "Embedded", "Encoder", "GRAPH_FILE", "Head", "Loaded", "Placement", "Progress",
    "TextEncoder", "WINDOW_CHARS", "Window", "embed_texts", "serve", "truncate",
)  # fmt: skip
# What is to be known of a model, on disk and at work: one file declares it, and one other fills it.
FACTS_OF_A_MODEL = ("Card", "ModelState")
MAX_FILES_OF_A_FACT = 2
# These say nothing where they are called: what works, who rests, what is shown?
NOT_ALONE = {"let_go", "rest", "take_over", "use", "work"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file of Python."""

    name: str  # from the root of the repository
    tree: ast.Module
    num_lines: int

    @classmethod
    def read(cls, path: Path) -> Source:
        """Parse a file."""
        text = path.read_text()
        return cls(str(path.relative_to(ROOT)), ast.parse(text), len(text.splitlines()))

    @property
    def module(self) -> str:
        """Its dotted name."""
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def room(self) -> str:
        """The folder it is in."""
        return str(Path(self.name).parent)

    def functions(self) -> Iterator[Function]:
        """All functions and methods, inner ones too."""
        yield from (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def public(self) -> Iterator[ast.Module | ast.ClassDef | Function]:
        """The module, its public classes, functions and methods; overrides tell nothing new."""
        yield self.tree
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
                yield node
                for inner in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(inner, Function) and not inner.name.startswith("_"):
                        yield inner

    def definitions(self) -> Iterator[str]:
        """Names of its classes, functions and constants."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef | Function):
                yield node.name
            elif isinstance(node, ast.Assign):
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id

    def fills(self, name: str) -> bool:
        """Whether it says what a class holds, by declaring it or by making one fact by fact."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return True
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == name
                and node.keywords
            ):
                return True
        return False

    def imports(self, known: set[str]) -> Iterator[str]:
        """Modules of the house that importing this one imports, not those of its functions."""
        for node in _at_import(self.tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in known else str(node.module) for name in inside]
            yield from (name for name in names if name in known)


def _at_import(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif not isinstance(node, Function | ast.ClassDef):
            yield from _at_import(node)


def _lines(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _unannotated(function: Function) -> bool:
    arguments = function.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    given += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    named = [one for one in given if one.arg not in {"self", "cls"}]
    constructor = function.name == "__init__" and bool(named)
    if function.returns is None and not constructor:
        return True
    return any(one.annotation is None for one in named)


def _cycles(sources: list[Source]) -> list[str]:
    known = {source.module for source in sources}
    graph = {source.module: set(source.imports(known)) for source in sources}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def _docstrings(sources: list[Source]) -> tuple[int, list[str]]:
    nodes = [(source, node) for source in sources if source.num_lines for node in source.public()]
    missing = [
        f"{source.name}:{getattr(node, 'lineno', 1)}"
        for source, node in nodes
        if ast.get_docstring(node) is None
    ]
    return len(nodes), missing


def _misplaced(product: list[Source]) -> Iterator[str]:
    top = {source.module.removeprefix("server.") for source in product if source.room == "server"}
    if strangers := sorted(top - TOP_FLOOR - {"server"}):
        yield f"on the top floor: {', '.join(strangers)}"


def _too_long(sources: list[Source]) -> Iterator[str]:
    long_files = [source.name for source in sources if source.num_lines > MAX_FILE_LINES]
    for name in long_files:
        if name not in LONG_FILES:
            yield f"{name} has over {MAX_FILE_LINES} lines"
    for name in LONG_FILES:
        if name not in long_files:
            yield f"{name} needs no exception any more"
    for folder, most in MAX_LINES.items():
        num_lines = sum(s.num_lines for s in sources if s.name.startswith(f"{folder}/"))
        if num_lines > most:
            yield f"{folder} has {num_lines:,} lines, at most {most:,} are allowed"


def _ill_made_functions(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for function in source.functions():
            where = f"{source.name}:{function.lineno}: {function.name}"
            if (num_lines := _lines(function)) > MAX_FUNCTION_LINES:
                yield f"{where} has {num_lines} lines"
            if _unannotated(function):
                yield f"{where} lacks annotations"


def _ill_named(product: list[Source]) -> Iterator[str]:
    for source in product:
        for function in source.functions():
            if function.name in NOT_ALONE:
                yield f"{source.name}:{function.lineno}: {function.name} does not stand alone"
    defined = Counter(name for source in product for name in source.definitions())
    for name in ONE_MEANING:
        if defined[name] > 1:
            yield f"{name} is defined {defined[name]} times"


def _files_of_a_fact(product: list[Source], name: str) -> list[str]:
    return [source.name for source in product if source.fills(name)]


def _scattered(product: list[Source]) -> Iterator[str]:
    for name in FACTS_OF_A_MODEL:
        files = _files_of_a_fact(product, name)
        if len(files) > MAX_FILES_OF_A_FACT:
            yield f"a new fact in {name} touches {', '.join(files)}"


def _undocumented(product: list[Source]) -> Iterator[str]:
    count, missing = _docstrings(product)
    if len(missing) > (1 - MIN_DOCSTRINGS) * count:
        yield f"public docstrings missing: {len(missing)} of {count}: {', '.join(missing)}"


def faults(sources: list[Source]) -> list[str]:
    """What is out of bounds, a line each."""
    product = [source for source in sources if source.name.startswith("server/")]
    return [
        *_misplaced(product),
        *_too_long(sources),
        *_ill_made_functions(sources),
        *_ill_named(product),
        *_scattered(product),
        *_undocumented(product),
        *(f"import cycle: {cycle}" for cycle in _cycles(product)),
    ]


def main() -> None:
    """Print the counts, then what is out of bounds."""
    paths = [*ROOT.glob("server/**/*.py"), *ROOT.glob("scripts/**/*.py")]
    sources = [Source.read(path) for path in sorted(paths)]
    lines = Counter[str]()
    for source in sources:
        lines[source.room] += source.num_lines
    for room, num_lines in sorted(lines.items()):
        print(f"{num_lines:7,} {room}")
    product = [source for source in sources if source.name.startswith("server/")]
    count, missing = _docstrings(product)
    functions = [function for source in sources for function in source.functions()]
    print(f"{sum(lines.values()):7,} lines, {len(sources)} files, {len(functions)} functions")
    print(f"{max(map(_lines, functions)):7,} lines in the longest function")
    print(f"{1 - len(missing) / count:7.1%} of what is public has a docstring")
    for name in FACTS_OF_A_MODEL:
        print(f"{len(_files_of_a_fact(product, name)):7,} files say what a {name} holds")
    found = faults(sources)
    for fault in found:
        print(f"BAD {fault}", file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
