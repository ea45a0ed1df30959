"""What was measured: figures by scenario, case, target and round; how they are summed up; their file.

Knows nothing of how figures are measured. Any thread may call.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MB = 1e6
Figures = dict[str, float]


class Spread(NamedTuple):
    """The median of the rounds, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread | None:
        """None if there are no values."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


class Record(NamedTuple):
    """One target's figures in one round of a scenario; `case` tells its variants apart."""

    scenario: str
    case: str
    target: str
    round: int
    figures: Figures


@dataclass(slots=True)
class Results:
    """All records of a run, in the order they were made."""

    records: list[Record] = field(default_factory=list)

    def by_round(self, scenario: str, target: str, figure: str, case: str = "") -> dict[int, float]:
        """A figure in each round."""
        asked = (scenario, case, target)
        records = [record for record in self.records if record[:3] == asked]
        return {r.round: r.figures[figure] for r in records if figure in r.figures}

    def ratios(
        self, scenario: str, figure: str, target: str, other: str, case: str = ""
    ) -> list[float]:
        """`target`'s figure through `other`'s of the same round, so that noise hits both alike."""
        above = self.by_round(scenario, target, figure, case)
        below = self.by_round(scenario, other, figure, case)
        return [above[number] / below[number] for number in above if below.get(number)]


def write_json(file: Path, facts: dict[str, Any], results: Results) -> None:
    """Every round's figures, with what they depend on; five digits of each, null for infinity."""
    records = [
        {name: value for name, value in record._asdict().items() if name != "figures"}
        | record.figures
        for record in results.records
    ]
    text = json.dumps(_short({**facts, "records": records}), indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(part) for name, part in value.items()}
    if isinstance(value, list):
        return list(map(_short, value))
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def read_json(file: Path) -> tuple[dict[str, Any], Results]:
    """What `write_json` wrote: the facts, and the records.

    Raises:
        ValueError, KeyError: it wrote something else.
    """
    facts = json.loads(file.read_text(encoding="utf-8"))
    results = Results()
    for told in facts.pop("records"):
        names = {name: told.pop(name) for name in ("scenario", "case", "target", "round")}
        figures = {name: math.inf if value is None else value for name, value in told.items()}
        results.records.append(Record(**names, figures=figures))
    return facts, results


def percentiles_ms(ms: Sequence[float], percents: Sequence[int] = (50, 95, 99)) -> Figures:
    """Nearest-rank percentiles, values that were seen, of milliseconds; nothing if there are none."""
    if not ms:
        return {}
    values = np.percentile(ms, percents, method="inverted_cdf")
    return {f"p{percent}_ms": float(v) for percent, v in zip(percents, values, strict=True)}


def work_figures(lengths: Sequence[int], requests: int, seconds: float) -> Figures:
    """Work done and rates, from the tokens of each text."""
    work = {"requests": requests, "texts": len(lengths), "tokens": sum(lengths)}
    rates = {f"{name}_per_s": count / seconds for name, count in work.items()}
    gflops = sum(map(model_flops, lengths)) / 1e9
    return {"seconds": seconds, **work, **rates, "gflops_per_s": gflops / seconds}


def model_flops(tokens: int) -> float:
    """Floating-point operations of all-MiniLM-L6-v2's forward pass for a text of this length.

    Counted as Kaplan et al. do ("Scaling Laws for Neural Language Models", 2020, section 2.1): two
    for each multiply-add of a matrix product and nothing for the rest. A layer multiplies each
    token by four (384, 384) matrices and two of (384, 1536), then attends: 384 multiply-adds a
    pair of tokens for the score and as many for the value. There are six layers.
    """
    matrices = 2 * (4 * 384 * 384 + 2 * 384 * 1536)
    attention = 2 * 2 * 384 * tokens
    return 6 * (matrices + attention) * tokens
