"""The plots of a run, as SVG files that are the same for the same figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, ScalarFormatter

from scripts.benchmark.results import Record, Results
from scripts.benchmark.scenarios import CONCURRENT_TEXTS

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
PERCENTILE_LINES = {50: "-", 95: "--", 99: ":"}


def draw(folder: Path, results: Results) -> None:
    """Write the plots whose scenarios were run."""
    with mpl.rc_context(STYLE):
        if concurrent := _medians(results, "concurrency"):
            _throughput(folder / "throughput.svg", concurrent)
        if loaded := _medians(results, "load"):
            _latency(folder / "latency.svg", loaded)


def _medians(results: Results, scenario: str) -> list[Record]:
    """A record with the rounds' medians for each case and target."""
    rounds = defaultdict(list)
    for record in results.records:
        if record.scenario == scenario:
            rounds[record.target, record.case].append(record.figures)
    return [
        Record(scenario, case, target, 0, {name: median(f[name] for f in all_) for name in all_[0]})
        for (target, case), all_ in rounds.items()
    ]


def _throughput(file: Path, records: Sequence[Record]) -> None:
    figure = Figure(figsize=(2 * PANEL_INCHES[0], PANEL_INCHES[1]), layout="constrained")
    panels = (
        ("mixed", "tokens_per_s", f"tokens/s, requests of {CONCURRENT_TEXTS} mixed texts"),
        ("query", "requests_per_s", "queries/s, one short query a request"),
    )
    for axes, (kind, rate, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for color, target, own in _by_target(records):
            points = [
                (record.figures["clients"], record.figures[rate])
                for record in own
                if record.case.startswith(kind)
            ]
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=target, markersize=3)
        axes.set_title(title)
        axes.set_xlabel("clients")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({record.figures["clients"] for record in records}))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        axes.set_ylim(bottom=0)
        axes.legend()
    _save(figure, file)


def _latency(file: Path, records: Sequence[Record]) -> None:
    figure = Figure(figsize=(1.4 * PANEL_INCHES[0], PANEL_INCHES[1]), layout="constrained")
    axes = figure.subplots()
    for color, target, own in _by_target(records):
        rates = [record.figures["arrivals_per_s"] for record in own]
        for percent, line in PERCENTILE_LINES.items():
            latencies = [record.figures[f"p{percent}_ms"] for record in own]
            label = f"{target}, p{percent}"
            axes.plot(rates, latencies, f"o{line}", color=color, label=label, markersize=3)
    axes.set_title("ms from a short query's arrival to its answer")
    axes.set_xlabel("arrivals/s")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside right upper")
    _save(figure, file)


def _by_target(records: Sequence[Record]) -> Iterator[tuple[str, str, list[Record]]]:
    """Each target with a colour and its records."""
    for index, target in enumerate(dict.fromkeys(record.target for record in records)):
        yield f"C{index}", target, [record for record in records if record.target == target]


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, metadata={"Date": None, "Creator": None})
