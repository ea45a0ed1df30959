"""What a run's figures depend on, and its results as Markdown tables.

No name or path of the machine is told.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.benchmark.results import Results, Spread
from scripts.benchmark.scenario import OURS, TABLE
from scripts.benchmark.targets import REPOSITORY
from server.inference.cpu_cores import usable_cores

UNSHOWN = ("seconds", "requests", "texts", "tokens")
ORIGIN_PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime")
NAMES = {
    "cpu_s": "CPU s",
    "gflops": "GFLOP",
    "tflops": "TFLOP",
    "_per_s": "/s",
    "_percent": " %",
    "_ms": " ms",
    "_mb": " MB",
    "_s": " s",
}
_PACKAGES = (
    *("onnxruntime", "tokenizers", "numpy", "uvicorn", "uvloop", "httptools", "orjson", "fastapi"),
    *("starlette", "pydantic", "torch", "transformers", "sentence-transformers", "psutil"),
)
# Instruction sets that decide how fast matrix products are.
_VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def tables(results: Results) -> Iterator[str]:
    """A table for each scenario, targets side by side and figures below each other; the goals."""
    for scenario in dict.fromkeys(record.scenario for record in results.records):
        targets = list(dict.fromkeys(r.target for r in results.records if r.scenario == scenario))
        yield _table(scenario, ["", *targets], list(_rows(results, scenario, targets)))
    rows = []
    for goal in judged(results):
        spread = f"{number(goal['median'])} ({number(goal['least'])} to {number(goal['most'])})"
        figure = f"{goal['scenario']}: {goal['figure']}"
        rows.append([figure, goal["goal"], spread, "yes" if goal["met"] else "no"])
    if rows:
        yield _table("goals", ["", "goal", "measured", "met"], rows)


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]
    return f"### {title}\n\n" + "\n".join(lines) + "\n"


def judged(results: Results) -> list[dict[str, Any]]:
    """Each goal whose scenario was run, with what was measured."""
    goals = [goal.judge(results, row.name) for row in TABLE for goal in row.goals]
    return [goal for goal in goals if goal is not None]


def _rows(results: Results, scenario: str, targets: Sequence[str]) -> Iterator[list[str]]:
    row = next(row for row in TABLE if row.name == scenario)
    records = [record for record in results.records if record.scenario == scenario]
    for case in dict.fromkeys(record.case for record in records):
        told = dict.fromkeys(name for r in records if r.case == case for name in r.figures)
        prefix = f"{case}: " if case else ""
        for figure in row.shown or [name for name in told if name not in UNSHOWN]:
            if figure in told:
                values = [results.by_round(scenario, one, figure, case) for one in targets]
                cells = [_cell(list(v.values()), figure == row.main_figure) for v in values]
                yield [prefix + title(figure), *cells]
        if "matrix product" in targets:
            ratios = [
                results.ratios(scenario, "gflops_per_s", one, "matrix product") for one in targets
            ]
            yield [prefix + "of the matrix product's rate", *(_cell(r, True) for r in ratios)]
        ratios = [
            results.ratios(scenario, row.main_figure, OURS, one, case) if one != OURS else []
            for one in targets
        ]
        if any(ratios):
            label = f"{prefix}{title(row.main_figure)}: ours through this"
            yield [label, *(_cell(r, True) for r in ratios)]


def title(figure: str) -> str:
    """A figure's name for people, with its unit."""
    for part, name in NAMES.items():
        figure = figure.replace(part, name)
    return figure.replace("_", " ")


def _cell(values: Sequence[float], with_spread: bool) -> str:
    over = Spread.over(values)
    if over is None:
        return ""
    spread = f" ({number(over.least)} to {number(over.most)})"
    return number(over.median) + (spread if with_spread and len(values) > 1 else "")


def number(value: float) -> str:
    """Three digits that mean something, or all before the point."""
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
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command_shown(arguments),
        "commit": _commit(),
        "machine": {
            "processor": model.group(1) if model else platform.processor() or platform.machine(),
            "vector_instructions": " ".join(flag for flag in _VECTOR_FLAGS if flag in text.split()),
            "cores_used": usable_cores(),
            "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "packages": versions,
    }


def _commit() -> str:
    """The checkout's commit, with a mark if files differ from it."""
    described = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git here
        null = subprocess.DEVNULL
        return subprocess.check_output(described, cwd=REPOSITORY, text=True, stderr=null).strip()
    return "unknown"


def command_shown(arguments: Sequence[str]) -> str:
    """The command of this run; of absolute paths only the last part."""
    shown = " ".join(f"'{part}'" if " " in part else part for part in arguments)
    return "python scripts/bench.py " + re.sub(r"(?<![\w.])/[^\s'\"=]*/", "", shown)
