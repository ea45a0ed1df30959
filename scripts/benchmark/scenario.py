"""The table of scenarios, and in which order their targets take their turns.

scenarios.toml holds a row for each: what is driven, by which function, with how much work, and what
the project promises of it. Rounds come one after the other and each visits every target, so that a
noisy machine hits all of them alike.
"""

from __future__ import annotations

import importlib
import operator
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from scripts.benchmark.measuring import Load
from scripts.benchmark.peers import Vectors
from scripts.benchmark.results import Figures, Record, Results, Spread
from scripts.benchmark.targets import Peer, Server, Target

OURS, AGAINST, GUARDED = "ours", "against", "ours, with keys"
# Ours by --dtype.
OWN = {"float32": OURS, "bfloat16": "ours, bfloat16", "int8": "ours, int8"}


@dataclass(slots=True)
class Bench:
    """The targets of a run by their names, and the results so far."""

    targets: Mapping[str, Target]
    load: Load
    stsb: Path | None = None  # scored pairs
    results: Results = field(default_factory=Results)
    # What the first target made of the texts that all are asked, and its dtype.
    verified: tuple[Vectors, str] | None = None
    exact: Vectors | None = None  # what the first target in float32 made of real texts


@dataclass(frozen=True, slots=True)
class Turn:
    """One target driven once."""

    bench: Bench
    row: Scenario
    case: str
    work: Mapping[str, Any]
    target: Target
    round: int
    label: str  # for people

    @property
    def seed(self) -> str:
        """Of this round's texts, which are the same for all targets."""
        return f"{self.row.name} {self.round}"

    @property
    def server(self) -> Server:
        assert isinstance(self.target, Server)
        return self.target

    @property
    def peer(self) -> Peer:
        assert isinstance(self.target, Peer)
        return self.target

    def run(self) -> None:
        """Drive the target, which records its figures."""
        self.row.function(self, **self.work)

    def record(self, figures: Figures, case: str | None = None, target: str | None = None) -> None:
        """Keep figures; of this turn's case and target, unless said otherwise."""
        case, target = self.case if case is None else case, target or self.target.name
        self.bench.results.records.append(Record(self.row.name, case, target, self.round, figures))


_COMBINED: dict[str, Callable[[float, float], float]] = {
    "itself": lambda value, _: value,
    "ratio": operator.truediv,
    "difference": operator.sub,
    "loss": lambda value, other: 100 * (1 - value / other),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound (sign, number, unit) on a figure; scenarios.toml tells of the fields."""

    figure: str
    bound: str
    of: str
    target: str = OURS
    case: str = ""
    how: str = "itself"
    other: str = ""
    other_case: str = ""

    def judge(self, results: Results, scenario: str) -> dict[str, Any] | None:
        """What was measured in all rounds, and whether its median is within the bound."""
        values = results.by_round(scenario, self.target, self.of, self.case)
        other, other_case = self.other or self.target, self.other_case or self.case
        others = results.by_round(scenario, other, self.of, other_case)
        combine = _COMBINED[self.how]
        spread = Spread.over([combine(v, others[n]) for n, v in values.items() if n in others])
        if spread is None:
            return None
        sign, bound, unit = self.bound.split()
        met = spread.median >= float(bound) if sign == "≥" else spread.median <= float(bound)
        named = {"scenario": scenario, "figure": self.figure, "goal": self.bound}
        return {**named, **spread._asdict(), "unit": unit, "met": met}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A row of the table: one scenario on one kind of device; scenarios.toml tells of the fields."""

    name: str
    device: str
    measure: str
    targets: Sequence[str]
    needs: Sequence[str] = ()
    rounds: int = 1
    repeats: bool = True
    always: bool = False
    long: bool = False
    work: Mapping[str, Any] = field(default_factory=dict)
    full: Sequence[Mapping[str, Any]] = ({},)
    quick: Sequence[Mapping[str, Any]] = ({},)
    main_figure: str = "tokens_per_s"
    shown: Sequence[str] = ()
    summary: Sequence[str] = ()
    goals: Sequence[Goal] = ()

    @property
    def function(self) -> Callable[..., None]:
        """What drives a target: takes its turn, and a case's work."""
        module, name = self.measure.split(":")
        found = getattr(importlib.import_module(f"scripts.benchmark.{module}"), name)
        return cast(Callable[..., None], found)

    def turns(self, bench: Bench, *, quick: bool, rounds: int | None) -> Iterator[Turn]:
        """All targets' turns in all cases and rounds, in the other order every second round.

        Who comes second after the same one each time would be compared with a bias: 2 % were seen.
        """
        times = (rounds or (1 if quick else self.rounds)) if self.repeats else self.rounds
        targets = [bench.targets[name] for name in self.targets if name in bench.targets]
        for size in self.quick if quick else self.full:
            work = {**self.work, **size}
            case = work.pop("case", "")
            for number in range(times):
                which = f"round {number + 1} of {times}" if times > 1 else ""
                named = ", ".join(filter(None, (self.name, case, which)))
                for target in reversed(targets) if number % 2 else targets:
                    label = f"{named}: {target.name}"
                    yield Turn(bench, self, case, work, target, number, label)


def _read_row(row: dict[str, Any]) -> Scenario:
    targets = [name for one in row["targets"] for name in _READ["groups"].get(one, [one])]
    goals = [Goal(**goal) for goal in row.get("goals", ())]
    return Scenario(**row | {"targets": targets, "goals": goals})


_READ = tomllib.loads(Path(__file__).with_name("scenarios.toml").read_text(encoding="utf-8"))
TABLE = tuple(map(_read_row, _READ["scenario"]))
PLUGINS: dict[str, dict[str, str]] = _READ["peers"]
RIVALS: dict[str, dict[str, Any]] = _READ["rivals"]
SERVERS: list[str] = _READ["groups"]["servers"]
# What --peer may name: rivals, and what computes the same in process.
PEERS = (*RIVALS, *_READ["groups"]["in process"])
