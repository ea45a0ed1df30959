"""Prometheus metrics as attributes that a class declares and its instances have.

Knows nothing of what they count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, overload

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.samples import Sample

PREFIX = "embedding_server"

M = TypeVar("M", bound=Counter | Gauge | Histogram)


class Declared(Generic[M]):
    """A metric as it is declared in a class; its instances have the metric itself by that name.

    Args:
        labels: their names.
        alike: says the same in each process of a server, so that it is not summed up.
        watched: read from a function whenever the page is asked for.
        buckets: of a histogram, their upper bounds.
    """

    def __init__(
        self,
        kind: Callable[..., M],
        name: str,
        help_text: str,
        *labels: str,
        alike: bool = False,
        watched: bool = False,
        buckets: tuple[float, ...] | None = None,
    ) -> None:
        self.name = f"{PREFIX}_{name}"
        self.alike = alike
        self.watched = watched
        self._kind = kind
        self._help = help_text
        self._labels = labels
        self._more = {"buckets": buckets} if buckets else {}

    def make(self, registry: CollectorRegistry, *more_labels: str) -> M:
        """The metric, on the page of this registry."""
        labels = (*self._labels, *more_labels)
        made = self._kind(self.name, self._help, labels, registry=registry, **self._more)
        # Its checks cost more than counting, and no series is ever removed.
        made.labels = functools.cache(made.labels)  # type: ignore[method-assign,assignment]
        return made

    @overload
    def __get__(self, instance: None, owner: type) -> Declared[M]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> M: ...
    def __get__(self, instance: object, owner: type) -> Declared[M] | M:
        if instance is not None:  # an instance has its metric as an attribute of its own
            raise AttributeError(f"{owner.__name__} did not make {self.name}")
        return self


def declared(kind: type) -> dict[str, Declared[Any]]:
    """The families that a class declares, by attribute."""
    return {name: found for name, found in vars(kind).items() if isinstance(found, Declared)}


class WatchedCounter(Counter):
    """A counter without labels of what is counted elsewhere; any thread may read it."""

    _read: Callable[[], float] = float

    def set_function(self, read: Callable[[], float]) -> None:
        """Read it from this function whenever the page is asked for, as a gauge's."""
        self._read = read

    def _child_samples(self) -> Iterable[Sample]:
        return (Sample("_total", {}, float(self._read()), None, None),)
