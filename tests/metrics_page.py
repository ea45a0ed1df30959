"""A page of /metrics, read by Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


class MetricsPage:
    """Its families and samples."""

    def __init__(self, page: str | bytes) -> None:
        text = page.decode() if isinstance(page, bytes) else page
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def value(self, name: str, /, **labels: str) -> float:
        """One sample, by its name without the prefix and all of its labels."""
        return self._values[f"embedding_server_{name}", frozenset(labels.items())]

    def total(self, name: str, /, **labels: str) -> float:
        """The sum of all samples of this name that have these labels."""
        return sum(value for _, value in self.having(name, **labels))

    def having(self, name: str, /, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and value of each sample of this name that has these labels."""
        for (found, found_labels), value in self._values.items():
            if found == f"embedding_server_{name}" and labels.items() <= found_labels:
                yield dict(found_labels), value
