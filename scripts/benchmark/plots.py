"""The plots of a run, as SVG files that are the same for the same figures."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, ScalarFormatter

from scripts.benchmark.report import title
from scripts.benchmark.results import Results
from scripts.benchmark.scenario import OWN

MARKERS = "s^vD"
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


def draw(folder: Path, results: Results) -> None:
    """Write the plots whose scenarios were run."""
    with mpl.rc_context(STYLE):
        if results.targets("concurrency"):
            figure = Figure(figsize=(8.4, 3.0), layout="constrained")
            mixed, query = figure.subplots(1, 2)
            _throughput(mixed, results, "mixed", "tokens_per_s")
            mixed.set_title("tokens/s, requests of 8 mixed texts")
            _throughput(query, results, "query", "requests_per_s")
            query.set_title("queries/s, one short query a request")
            _save(figure, folder / "throughput.svg")
        if results.targets("load"):
            figure = Figure(figsize=(5.88, 3.0), layout="constrained")
            _latency(figure.subplots(), results)
            figure.legend(loc="outside right upper")
            _save(figure, folder / "latency.svg")
        if results.targets("quality"):
            figure = Figure(figsize=(8.4, 4.2), layout="constrained")
            _quality(figure.subplots(), results)
            figure.legend(loc="outside right upper")
            _save(figure, folder / "quality.svg")


def _medians(results: Results, scenario: str, target: str, figure: str, kind: str) -> list[float]:
    """Of the rounds, by case of this kind."""
    cases = [case for case in results.cases(scenario) if case.startswith(kind)]
    by_case = (results.by_round(scenario, target, figure, case).values() for case in cases)
    return [median(values) for values in by_case if values]


def _throughput(axes: Axes, results: Results, kind: str, rate: str) -> None:
    for target in results.targets("concurrency"):
        clients, rates = (
            _medians(results, "concurrency", target, figure, kind) for figure in ("clients", rate)
        )
        axes.plot(clients, rates, "o-", label=target, markersize=3)
        axes.set_xticks(sorted(clients))
    axes.set(xlabel="clients", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
    axes.legend()


def _latency(axes: Axes, results: Results) -> None:
    for color, target in enumerate(results.targets("load")):
        rates = _medians(results, "load", target, "arrivals_per_s", "")
        for percent, line in {50: "-", 95: "--", 99: ":"}.items():
            ms = _medians(results, "load", target, f"p{percent}_ms", "")
            label = f"{target}, p{percent}"
            axes.plot(rates, ms, f"o{line}", color=f"C{color}", label=label, markersize=3)
    axes.set_title("ms from a short query's arrival to its answer")
    axes.set(xlabel="arrivals/s", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())


def _quality(axes: Axes, results: Results) -> None:
    """Ours as a line over the sizes of vectors, others as a point at the model's own size."""
    scored = results.figures("quality", results.cases("quality")[0])
    worth = "spearman" if "spearman" in scored else "top_ten_kept_percent"
    for number, target in enumerate(results.targets("quality")):
        cases = [
            c for c in results.cases("quality") if results.by_round("quality", target, worth, c)
        ]
        speeds, points = (
            _medians(results, "quality", target, name, "") for name in ("texts_per_s", worth)
        )
        line = "o-" if target in OWN.values() else MARKERS[number % len(MARKERS)]
        axes.plot(speeds, points, line, color=f"C{number % 10}", label=target, markersize=5)
        for place, (case, x, y) in enumerate(zip(cases, speeds, points, strict=True)):
            if len(cases) > 1:  # left and right in turn, since the largest sizes lie close together
                aside = {"ha": "right", "xytext": (-5, -3)} if place % 2 else {"xytext": (5, -3)}
                size = case.removesuffix(" dimensions")
                axes.annotate(size, (x, y), textcoords="offset points", fontsize=7, **aside)
    axes.set_title(f"{title(worth)}, against texts a second; numbers are dimensions")
    axes.set(xlabel="texts/s", xlim=(0, None))


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None, "Creator": None})
