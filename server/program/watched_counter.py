"""A Prometheus counter of what is counted elsewhere; any thread may read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import Counter
from prometheus_client.samples import Sample


class WatchedCounter(Counter):
    """A counter without labels that is counted elsewhere."""

    _read: Callable[[], float] = float

    def set_function(self, read: Callable[[], float]) -> None:
        """Read it from this function whenever the page is asked for, as a gauge's."""
        self._read = read

    def _child_samples(self) -> Iterable[Sample]:
        return (Sample("_total", {}, float(self._read()), None, None),)
