"""A run's results as tables for the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from scripts.benchmark.goals import GOALS
from scripts.benchmark.measuring import MATRIX_PRODUCT, OURS
from scripts.benchmark.results import Record, Results, Spread

# Shown with its spread over the rounds, and as a ratio of ours to the others'.
MAIN_FIGURE = {
    "query": "p50_ms",
    "query-16": "requests_per_s",
    "query-under-indexing": "query_p50_ms",
    "load": "p50_ms",
}
DEFAULT_MAIN_FIGURE = "tokens_per_s"
# What is shown where a scenario has several cases; the others show all but the last line's.
CASE_FIGURES = {
    "query-under-indexing": (
        *("tokens_per_s", "query_requests", "query_p50_ms", "query_p95_ms", "query_p99_ms"),
        *("padding_percent", "resident_mb"),
    ),
    "concurrency": ("tokens_per_s", "requests_per_s", "p50_ms"),
    "load": ("arrivals_per_s", "p50_ms", "p95_ms", "p99_ms"),
    "forward": ("tokens_per_s", "of_matrix_rate_percent", "p50_ms", "p99_ms"),
    "http": (
        *("tokens_per_s", "requests_per_s", "p50_ms", "p99_ms", "server_cpu_ms_per_request"),
        *("gpu_busy_percent", "gpu_memory_mb", "busiest_client_cpu_percent"),
    ),
}
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


class Table(NamedTuple):
    """Cells as texts; the first columns name the row."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(results: Results) -> Iterator[Table]:
    """A table for each scenario, then the goals."""
    for scenario in dict.fromkeys(record.scenario for record in results.records):
        yield _scenario_table(results, scenario)
    rows = [_goal_row(goal) for goal in goal_figures(results)]
    if rows:
        yield Table("goals", ["", "goal", "measured", "met"], rows)


def goal_figures(results: Results) -> list[dict[str, Any]]:
    """Each goal whose scenario was run, with what was measured."""
    figures = []
    for goal in GOALS:
        spread = Spread.over(goal.measure(results))
        if spread is not None:
            named = {"scenario": goal.scenario, "figure": goal.figure, "goal": goal.wording}
            measured = {**spread._asdict(), "unit": goal.unit, "met": goal.is_met(spread)}
            figures.append(named | measured)
    return figures


def _goal_row(goal: dict[str, Any]) -> list[str]:
    figure = f"{goal['scenario']}: {goal['figure']}"
    measured = f"{number(goal['median'])} ({number(goal['least'])} to {number(goal['most'])})"
    return [figure, goal["goal"], measured, "yes" if goal["met"] else "no"]


def _scenario_table(results: Results, scenario: str) -> Table:
    """Targets side by side, figures below each other."""
    records = [record for record in results.records if record.scenario == scenario]
    targets = list(dict.fromkeys(record.target for record in records))
    main = MAIN_FIGURE.get(scenario, DEFAULT_MAIN_FIGURE)
    rows = []
    for case in dict.fromkeys(record.case for record in records):
        figures = dict.fromkeys(
            figure for record in records if record.case == case for figure in record.figures
        )
        shown = CASE_FIGURES.get(scenario, [name for name in figures if name not in UNSHOWN])
        prefix = f"{case}: " if case else ""
        for figure in shown:
            if figure in figures:
                values = [results.by_round(scenario, name, figure, case) for name in targets]
                cells = [_cell(list(value.values()), spread=figure == main) for value in values]
                rows.append([prefix + title(figure), *cells])
        for label, ratios in _ratio_rows(results, scenario, case, targets, main):
            rows.append([prefix + label, *(_cell(values, spread=True) for values in ratios)])
    return Table(scenario, ["", *targets], rows)


def _ratio_rows(
    results: Results, scenario: str, case: str, targets: Sequence[str], main: str
) -> Iterator[tuple[str, list[list[float]]]]:
    if MATRIX_PRODUCT in targets:
        yield (
            "of the matrix product's rate",
            [results.ratios(scenario, "gflops_per_s", name, MATRIX_PRODUCT) for name in targets],
        )
    through = [
        results.ratios(scenario, main, OURS, name, case) if name != OURS else [] for name in targets
    ]
    if any(through):
        yield f"{title(main)}: ours through this", through


def title(figure: str) -> str:
    """A figure's name for people, with its unit."""
    for part, name in NAMES.items():
        figure = figure.replace(part, name)
    return figure.replace("_", " ")


def _cell(values: Sequence[float], *, spread: bool) -> str:
    over = Spread.over(values)
    if over is None:
        return ""
    text = number(over.median)
    if spread and len(values) > 1:
        text += f" ({number(over.least)} to {number(over.most)})"
    return text


def number(value: float) -> str:
    """Three digits that mean something, or all before the point."""
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}" if value % 1 else f"{value:.0f}"


def show(table: Table, console: Console) -> None:
    """Print a table on the terminal."""
    shown = RichTable(title=table.title, title_justify="left")
    for number, name in enumerate(table.header):
        shown.add_column(name, justify="left" if number == 0 else "right")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def markdown(table: Table) -> str:
    """The table for a document."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_json(file: Path, facts: dict[str, Any], results: Results) -> None:
    """Every round's raw figures, with what they depend on."""
    records = [
        {
            "scenario": record.scenario,
            "case": record.case,
            "target": record.target,
            "round": record.round,
            **{name: _short(value) for name, value in record.figures.items()},
        }
        for record in results.records
    ]
    goals = [
        {name: _short(value) for name, value in goal.items()} for goal in goal_figures(results)
    ]
    lines = json.dumps({**facts, "goals": goals, "records": records}, indent=1, ensure_ascii=False)
    file.write_text(lines + "\n", encoding="utf-8")


def read_json(file: Path) -> tuple[dict[str, Any], Results]:
    """What `write_json` wrote: the facts, and the records.

    Raises:
        ValueError, KeyError: it wrote something else.
    """
    facts = json.loads(file.read_text(encoding="utf-8"))
    records = []
    for figures in facts.pop("records"):
        names = {name: figures.pop(name) for name in ("scenario", "case", "target", "round")}
        measured = {name: math.inf if value is None else value for name, value in figures.items()}
        records.append(Record(**names, figures=measured))
    return facts, Results(records)


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


def _short(value: Any) -> Any:
    """Five digits of a number; nothing for infinity, which JSON does not know."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
