"""The metrics of several processes as one page: sums, but of what says the same of each of them.

Pure; knows nothing of frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

Labels = tuple[tuple[str, str], ...]
# Plain enough for messages: family, whether it counts, and for each of its samples name, labels, value.
Samples = list[tuple[str, bool, list[tuple[str, Labels, float]]]]
# By family, then by name and labels of the sample.
Sums = defaultdict[str, defaultdict[tuple[str, Labels], float]]


def samples_of(families: Iterable[Metric], *, alike: Collection[str]) -> Samples:
    """What a process adds to the page.

    Args:
        families: what it shows itself.
        alike: names of those that say the same in each process.
    """
    return [
        (
            family.name,
            family.type != "gauge",
            [(sample.name, _labels(sample), sample.value) for sample in family.samples],
        )
        for family in families
        if family.name not in alike
    ]


class Changes:
    """What a process has to tell of its metrics: those that have changed since it told them."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, Labels], float] = {}

    def take(self, samples: Samples) -> Samples:
        """Of its metrics as they are now, what another process does not know; it will be told."""
        changed = []
        for family, counts, series in samples:
            news = [one for one in series if self._told.get(one[:2]) != one[2]]
            if news:
                self._told.update((one[:2], one[2]) for one in news)
                changed.append((family, counts, news))
        return changed


class Told:
    """The metrics of another process, as it has told them bit by bit."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[bool, dict[tuple[str, Labels], float]]] = {}

    def update(self, changed: Samples) -> None:
        """It has told what has changed."""
        for family, counts, series in changed:
            _, values = self._families.setdefault(family, (counts, {}))
            values.update(((name, labels), value) for name, labels, value in series)

    def samples(self) -> Samples:
        """All that it has told."""
        return [
            (family, counts, [(name, labels, value) for (name, labels), value in values.items()])
            for family, (counts, values) in self._families.items()
        ]


class Counted:
    """What was counted by processes that are gone, so that no sum ever shrinks."""

    def __init__(self) -> None:
        self._sums = _no_sums()

    def add(self, samples: Samples) -> None:
        """Keep the counts; what gauges showed is gone with the process."""
        _add([family for family in samples if family[1]], self._sums)

    def samples(self) -> Samples:
        """What is kept."""
        return [
            (family, True, [(name, labels, value) for (name, labels), value in sums.items()])
            for family, sums in self._sums.items()
        ]


def summed_page(families: Iterable[Metric], others: Iterable[Samples]) -> bytes:
    """The page of this process, of these families, with what the others add to it."""
    sums = _no_sums()
    for samples in others:
        _add(samples, sums)
    families = list(families)
    for family in families:
        _add_to(family, sums[family.name])
    return generate_latest(_Collected(families))


def _no_sums() -> Sums:
    return defaultdict(lambda: defaultdict(float))


def _add(samples: Samples, sums: Sums) -> None:
    for family, _, series in samples:
        for name, labels, value in series:
            sums[family][name, labels] += value


def _add_to(family: Metric, sums: dict[tuple[str, Labels], float]) -> None:
    """Add to the family's samples, and append those that this process does not have."""
    family.samples = [
        sample._replace(value=sample.value + sums.pop((sample.name, _labels(sample)), 0.0))
        for sample in family.samples
    ]
    family.samples += [Sample(name, dict(labels), value) for (name, labels), value in sums.items()]


def _labels(sample: Sample) -> Labels:
    return tuple(sample.labels.items())


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
