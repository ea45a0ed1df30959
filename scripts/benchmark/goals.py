"""What the project promises of its speed, as ratios within one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scripts.benchmark.measuring import GUARDED, MATRIX_PRODUCT, OURS
from scripts.benchmark.results import Results, Spread
from scripts.benchmark.scenarios import ALONE, FORWARD_PASS, TOGETHER

INFINITY = "infinity"
_UNDER_INDEXING = "query-under-indexing"

Measure = Callable[[Results], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a figure; `measure` gives its value in each round, nothing if it was not run."""

    scenario: str
    figure: str
    measure: Measure
    bound: float
    at_least: bool = True
    unit: str = "x"

    @property
    def wording(self) -> str:
        """The bound as a text."""
        return f"{'≥' if self.at_least else '≤'} {self.bound:g} {self.unit}"

    def is_met(self, spread: Spread) -> bool:
        """Whether the median of the rounds is within the bound."""
        return spread.median >= self.bound if self.at_least else spread.median <= self.bound


def _times(scenario: str, figure: str, other: str) -> Measure:
    """Our figure through another's."""
    return lambda results: results.ratios(scenario, figure, OURS, other)


def _shorter(scenario: str, figure: str, case: str = "") -> Measure:
    """Infinity's latency through ours."""
    return lambda results: results.ratios(scenario, figure, INFINITY, OURS, case)


def _figure(scenario: str, figure: str) -> Measure:
    return lambda results: list(results.by_round(scenario, OURS, figure).values())


def _beyond_forward_pass(results: Results) -> list[float]:
    ours = results.by_round("query", OURS, "p50_ms")
    forward = results.by_round("query", FORWARD_PASS, "p50_ms")
    return [ours[number] - forward[number] for number in ours if number in forward]


def _indexing_lost(results: Results) -> list[float]:
    kept = [
        results.by_round(_UNDER_INDEXING, OURS, "tokens_per_s", case) for case in (TOGETHER, ALONE)
    ]
    return [100 * (1 - kept[0][number] / kept[1][number]) for number in kept[0]]


GOALS = (
    Goal(
        "indexing",
        "tokens/s: Infinity's times",
        _times("indexing", "tokens_per_s", INFINITY),
        2.6,
    ),
    Goal(
        "indexing",
        "tokens/s: ONNX Runtime's in process times",
        _times("indexing", "tokens_per_s", "onnxruntime"),
        0.95,
    ),
    Goal(
        "indexing",
        "tokens/s: the same engine's in process times",
        _times("indexing", "tokens_per_s", "engine"),
        0.95,
    ),
    Goal(
        "indexing",
        "tokens/s with keys, limits and usage: those without's times",
        lambda results: results.ratios("indexing", "tokens_per_s", GUARDED, OURS),
        0.97,
    ),
    Goal(
        "query-16",
        "queries/s with keys, limits and usage: those without's times",
        lambda results: results.ratios("query-16", "requests_per_s", GUARDED, OURS),
        0.97,
    ),
    Goal(
        "indexing-128",
        "operations/s: the matrix product's times",
        _times("indexing-128", "gflops_per_s", MATRIX_PRODUCT),
        0.85,
    ),
    Goal(
        "large-request",
        "tokens/s: Infinity's times",
        _times("large-request", "tokens_per_s", INFINITY),
        2.6,
    ),
    Goal("query", "p50: shorter than Infinity's", _shorter("query", "p50_ms"), 6),
    Goal("query", "p50 beyond the forward pass", _beyond_forward_pass, 2, False, "ms"),
    Goal(
        "query-16",
        "queries/s: Infinity's times",
        _times("query-16", "requests_per_s", INFINITY),
        7,
    ),
    Goal(
        _UNDER_INDEXING,
        "p50: shorter than Infinity's",
        _shorter(_UNDER_INDEXING, "query_p50_ms", TOGETHER),
        40,
    ),
    Goal(
        _UNDER_INDEXING,
        "p95: shorter than Infinity's",
        _shorter(_UNDER_INDEXING, "query_p95_ms", TOGETHER),
        30,
    ),
    Goal(_UNDER_INDEXING, "indexing lost by the queries", _indexing_lost, 10, False, "%"),
    Goal(
        "flood",
        "memory: the second half's most beyond the first's",
        _figure("flood", "memory_growth_percent"),
        5,
        False,
        "%",
    ),
    Goal(
        "flood",
        "refusals that are a 503 with Retry-After",
        _figure("flood", "right_refusals_percent"),
        100,
        True,
        "%",
    ),
    Goal("flood", "back to normal after", _figure("flood", "recovery_s"), 2, False, "s"),
    Goal(
        "soak",
        "memory: the end's beyond a tenth's",
        _figure("soak", "memory_growth_percent"),
        5,
        False,
        "%",
    ),
)
