"""What a run's figures depend on, without names or paths of the machine; its tables in Markdown."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from scripts.benchmark.results import Results, Spread
from scripts.benchmark.scenario import OWN, TABLE
from scripts.benchmark.targets import REPOSITORY
from server.inference.cpu_cores import usable_cores

UNSHOWN = ("seconds", "requests", "texts", "tokens")
ORIGIN_PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime")
NAMES = {
    "spearman": "STS-B dev, Spearman x 100",
    "cpu_s": "CPU s",
    "gflops": "GFLOP",
    "tflops": "TFLOP",
    "_per_s": "/s",
    "_percent": " %",
    "_ms": " ms",
    "_mb": " MB",
    "_s": " s",
}
_DECIMALS = {"cosine": 5, "spearman": 2}
_PACKAGES = (
    *("onnxruntime", "tokenizers", "numpy", "uvicorn", "uvloop", "httptools", "orjson", "fastapi"),
    *(
        "openvino",
        "starlette",
        "pydantic",
        "torch",
        "transformers",
        "sentence-transformers",
        "psutil",
    ),
)
# Instruction sets that decide how fast matrix products are.
_VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def tables(results: Results) -> Iterator[str]:
    """All in short, if several were measured; a table for each scenario; the goals.

    In a scenario's table targets stand side by side and figures below each other.
    """
    if summary := _summary(results):
        yield summary
    for scenario in dict.fromkeys(record.scenario for record in results.records):
        targets = results.targets(scenario)
        yield _table(scenario, ["", *targets], _rows(results, scenario, targets))
    rows = []
    for goal in judged(results):
        spread = f"{number(goal['median'])} ({number(goal['least'])} to {number(goal['most'])})"
        figure = f"{goal['scenario']}: {goal['figure']}"
        rows.append([figure, goal["goal"], spread, "yes" if goal["met"] else "no"])
    if rows:
        yield _table("goals", ["", "goal", "measured", "met"], rows)


def _summary(results: Results) -> str:
    """A line for each target, a column for each scenario's figures."""
    columns: dict[str, dict[str, str]] = {}
    for row in TABLE:
        for figure in row.summary or [row.main_figure]:
            cells: dict[str, str] = {}
            for target in results.targets(row.name):
                for case in results.cases(row.name):
                    if found := results.by_round(row.name, target, figure, case):
                        cells.setdefault(target, _cell(list(found.values()), figure, True))
            if len(cells) > 1:
                columns[f"{row.name}: {title(figure)}"] = cells
    if len(columns) < 2:
        return ""
    targets = dict.fromkeys(target for cells in columns.values() for target in cells)
    lines = [[one, *(cells.get(one, "") for cells in columns.values())] for one in targets]
    return _table("in short", ["", *columns], lines)


def _table(title: str, header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]
    return f"### {title}\n\n" + "\n".join(lines) + "\n"


def judged(results: Results) -> list[dict[str, Any]]:
    """Each goal whose scenario was run, with what was measured."""
    goals = [goal.judge(results, row.name) for row in TABLE for goal in row.goals]
    return [goal for goal in goals if goal is not None]


def _rows(results: Results, scenario: str, targets: Sequence[str]) -> Iterator[list[str]]:
    row = next(row for row in TABLE if row.name == scenario)
    main = row.main_figure

    def ratios(figure: str, target: str, other: str, case: str) -> str:
        return _cell(results.ratios(scenario, figure, target, other, case), "", True)

    for case in results.cases(scenario):
        prefix = f"{case}: " if case else ""
        told = results.figures(scenario, case)
        for figure in row.shown or [name for name in told if name not in UNSHOWN]:
            if figure in told:
                values = [results.by_round(scenario, one, figure, case) for one in targets]
                cells = [_cell(list(v.values()), figure, figure == main) for v in values]
                yield [prefix + title(figure), *cells]
        if "matrix product" in targets:
            cells = [ratios("gflops_per_s", one, "matrix product", case) for one in targets]
            yield [prefix + "of the matrix product's rate", *cells]
        for own in OWN.values():
            cells = [ratios(main, own, one, case) if one != own else "" for one in targets]
            if any(cells):
                yield [f"{prefix}{title(main)}: {own} through this", *cells]


def title(figure: str) -> str:
    """A figure's name for people, with its unit."""
    for part, name in NAMES.items():
        figure = figure.replace(part, name)
    return figure.replace("_", " ")


def _cell(values: Sequence[float], figure: str, with_spread: bool) -> str:
    over = Spread.over(values)
    if over is None:
        return ""
    decimals = next((n for part, n in _DECIMALS.items() if part in figure), None)
    median, least, most = (number(value, decimals) for value in over)
    return median + (f" ({least} to {most})" if with_spread and len(values) > 1 else "")


def number(value: float, decimals: int | None = None) -> str:
    """Three digits that mean something, or all before the point; or so many decimals."""
    if decimals is not None:
        return f"{value:.{decimals}f}"
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}" if value % 1 else f"{value:.0f}"


def origin(facts: dict[str, Any]) -> str:
    """Where figures come from, as a line for a document."""
    packages, machine = facts["packages"], facts["machine"]
    told = [
        facts["date"],
        facts.get("gpu", ""),
        f"{machine['cores_used']} cores of {machine['processor']}",
        f"Python {machine['python']}",
        *(f"{name} {packages[name]}" for name in ORIGIN_PACKAGES if name in packages),
        f"commit {facts['commit']}",
    ]
    return f"`{facts['command']}`: {', '.join(filter(None, told))}.\n"


def facts_of_run(arguments: Sequence[str]) -> dict[str, Any]:
    """Of a run that begins now, with these arguments."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    installed = {package.name: package.version for package in metadata.distributions()}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command_shown(arguments),
        "commit": _commit(),
        "machine": {
            "processor": model.group(1) if model else platform.processor() or platform.machine(),
            "vector_instructions": " ".join(flag for flag in _VECTOR_FLAGS if flag in text.split()),
            "cores_used": usable_cores(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "packages": {name: installed[name] for name in _PACKAGES if name in installed},
    }


def _commit() -> str:
    """The checkout's commit, with a mark if files differ from it."""
    null = subprocess.DEVNULL
    described = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.check_output(described, cwd=REPOSITORY, text=True, stderr=null).strip()
    except (OSError, subprocess.CalledProcessError):  # no git here
        return "unknown"


def command_shown(arguments: Sequence[str]) -> str:
    """The command of this run; of absolute paths only the last part."""
    shown = " ".join(f"'{part}'" if " " in part else part for part in arguments)
    return "python scripts/bench.py " + re.sub(r"(?<![\w.])/[^\s'\"=]*/", "", shown)
