"""What was measured: figures by scenario, case, target and round, and how they are summed up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scripts.benchmark.client import Sample

MB = 1e6


class Spread(NamedTuple):
    """The median of the rounds, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread | None:
        """None if there are no values."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


@dataclass(frozen=True, slots=True)
class Record:
    """One target's figures in one round of a scenario; `case` tells its variants apart."""

    scenario: str
    case: str
    target: str
    round: int
    figures: dict[str, float]


@dataclass(slots=True)
class Results:
    """All records of a run, in the order they were made."""

    records: list[Record] = field(default_factory=list)

    def by_round(self, scenario: str, target: str, figure: str, case: str = "") -> dict[int, float]:
        """A figure in each round."""
        return {
            record.round: record.figures[figure]
            for record in self.records
            if (record.scenario, record.target, record.case) == (scenario, target, case)
            and figure in record.figures
        }

    def ratios(
        self, scenario: str, figure: str, target: str, other: str, case: str = ""
    ) -> list[float]:
        """`target`'s figure through `other`'s of the same round, so that noise hits both alike."""
        above = self.by_round(scenario, target, figure, case)
        below = self.by_round(scenario, other, figure, case)
        return [above[number] / below[number] for number in above if below.get(number)]


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was seen, never one between."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def latency_figures(samples: Sequence[Sample]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    return percentiles_ms([sample.ms for sample in samples])


def percentiles_ms(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 of milliseconds; nothing if there are none."""
    if not values:
        return {}
    return {f"p{percent}_ms": percentile(values, percent) for percent in (50, 95, 99)}


def work_figures(lengths: Sequence[int], requests: int, seconds: float) -> dict[str, float]:
    """Work done and rates, from the tokens of each text."""
    tokens = sum(lengths)
    return {
        "seconds": seconds,
        "requests": requests,
        "texts": len(lengths),
        "tokens": tokens,
        "requests_per_s": requests / seconds,
        "texts_per_s": len(lengths) / seconds,
        "tokens_per_s": tokens / seconds,
        "gflops_per_s": sum(map(model_flops, lengths)) / seconds / 1e9,
    }


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
