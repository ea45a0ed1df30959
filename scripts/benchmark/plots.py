"""The plots of a run, as SVG files that are the same for the same figures."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, ScalarFormatter

from scripts.benchmark.results import Figures, Results

STYLE = {
    "svg.hashsalt": "bench",
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
# By case, the medians of its rounds.
Series = dict[str, Figures]


def draw(folder: Path, results: Results) -> None:
    """Write the plots whose scenarios were run."""
    with mpl.rc_context(STYLE):
        if series := _series(results, "concurrency"):
            figure = Figure(figsize=(8.4, 3.0), layout="constrained")
            mixed, query = figure.subplots(1, 2)
            _throughput(mixed, series, "mixed", "tokens_per_s")
            mixed.set_title("tokens/s, requests of 8 mixed texts")
            _throughput(query, series, "query", "requests_per_s")
            query.set_title("queries/s, one short query a request")
            _save(figure, folder / "throughput.svg")
        if series := _series(results, "load"):
            figure = Figure(figsize=(5.88, 3.0), layout="constrained")
            _latency(figure.subplots(), series)
            figure.legend(loc="outside right upper")
            _save(figure, folder / "latency.svg")


def _series(results: Results, scenario: str) -> dict[str, Series]:
    """By target."""
    rounds: dict[str, dict[str, list[Figures]]] = {}
    for record in results.records:
        if record.scenario == scenario:
            cases = rounds.setdefault(record.target, {})
            cases.setdefault(record.case, []).append(record.figures)
    return {
        target: {
            case: {name: median(one[name] for one in seen) for name in seen[0]}
            for case, seen in cases.items()
        }
        for target, cases in rounds.items()
    }


def _throughput(axes: Axes, series: dict[str, Series], kind: str, rate: str) -> None:
    for color, (target, cases) in enumerate(series.items()):
        shown = [figures for case, figures in cases.items() if case.startswith(kind)]
        clients, rates = ([figures[name] for figures in shown] for name in ("clients", rate))
        axes.plot(clients, rates, "o-", color=f"C{color}", label=target, markersize=3)
        axes.set_xticks(sorted(clients))
    axes.set(xlabel="clients", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
    axes.legend()


def _latency(axes: Axes, series: dict[str, Series]) -> None:
    for color, (target, cases) in enumerate(series.items()):
        rates = [figures["arrivals_per_s"] for figures in cases.values()]
        for percent, line in {50: "-", 95: "--", 99: ":"}.items():
            ms = [figures[f"p{percent}_ms"] for figures in cases.values()]
            looks: Any = {"color": f"C{color}", "label": f"{target}, p{percent}", "markersize": 3}
            axes.plot(rates, ms, f"o{line}", **looks)
    axes.set_title("ms from a short query's arrival to its answer")
    axes.set(xlabel="arrivals/s", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None, "Creator": None})
