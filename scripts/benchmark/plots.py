"""The plots of a run, as SVG files that are the same for the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

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
PANEL_INCHES = (4.2, 3.0)


def draw(folder: Path, results: Results) -> None:
    """Write the plots whose scenarios were run."""
    with mpl.rc_context(STYLE):
        for scenario, panels, plot in (("concurrency", 2, _throughput), ("load", 1, _latency)):
            if any(record.scenario == scenario for record in results.records):
                width = (2 if panels == 2 else 1.4) * PANEL_INCHES[0]
                figure = Figure(figsize=(width, PANEL_INCHES[1]), layout="constrained")
                name = plot(figure, results)
                figure.savefig(folder / name, metadata={"Date": None, "Creator": None})


def _medians(results: Results, scenario: str) -> Iterator[tuple[str, str, dict[str, Figures]]]:
    """A colour for each target, and by case the medians of its rounds."""
    targets = dict.fromkeys(r.target for r in results.records if r.scenario == scenario)
    for index, target in enumerate(targets):
        cases: dict[str, list[Figures]] = {}
        for record in results.of(scenario, target):
            cases.setdefault(record.case, []).append(record.figures)
        yield (
            f"C{index}",
            target,
            {
                case: {name: median(one[name] for one in rounds) for name in rounds[0]}
                for case, rounds in cases.items()
            },
        )


def _throughput(figure: Figure, results: Results) -> str:
    panels = (
        ("mixed", "tokens_per_s", "tokens/s, requests of 8 mixed texts"),
        ("query", "requests_per_s", "queries/s, one short query a request"),
    )
    for axes, (kind, rate, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for color, target, cases in _medians(results, "concurrency"):
            shown = [figures for case, figures in cases.items() if case.startswith(kind)]
            clients = [figures["clients"] for figures in shown]
            rates = [figures[rate] for figures in shown]
            axes.plot(clients, rates, "o-", color=color, label=target, markersize=3)
            axes.set_xticks(sorted(clients))
        axes.set(title=title, xlabel="clients", ylim=(0, None))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        axes.legend()
    return "throughput.svg"


def _latency(figure: Figure, results: Results) -> str:
    axes: Axes = figure.subplots()
    for color, target, cases in _medians(results, "load"):
        rates = [figures["arrivals_per_s"] for figures in cases.values()]
        for percent, line in {50: "-", 95: "--", 99: ":"}.items():
            ms = [figures[f"p{percent}_ms"] for figures in cases.values()]
            label = f"{target}, p{percent}"
            axes.plot(rates, ms, f"o{line}", color=color, label=label, markersize=3)
    title = "ms from a short query's arrival to its answer"
    axes.set(title=title, xlabel="arrivals/s", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside right upper")
    return "latency.svg"
