"""How far two sides' vectors are from each other, for people and programs to read."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson

from server.commands.printing import print_plain_table
from server.fitting.rotation import SEED
from server.inference.least_cosines import SPACE
from server.inference.neighbours import MAX_QUERIES, NEIGHBOURS
from server.spaces.compare import SpaceComparison
from server.spaces.verdict import RANKING


def print_comparison(found: SpaceComparison) -> None:
    """The tables of `space compare`, and its verdict."""
    sides = [("A", found.left), ("B", found.right)]
    print_plain_table(
        ("", "given", "model", "dimensions", "computed", "fingerprint"),
        [
            (name, one.given, one.model, str(one.dimensions), one.computed, one.fingerprint or "-")
            for name, one in sides
        ],
    )
    print_plain_table(("measure", "value", "where"), _measures(found))
    print(f"verdict: {found.verdict.words}")


def _measures(found: SpaceComparison) -> list[tuple[str, ...]]:
    agreement, shared = found.agreement, found.neighbours
    drawn = f"{found.texts:,}"
    if found.texts < found.texts_read:
        drawn += f", drawn from {found.texts_read:,}"
    rows: list[tuple[str, ...]] = [("texts", f"{drawn} ({found.distinct_texts:,} distinct)", "")]
    if agreement is None:
        rows.append(("cosines", "none: the sizes differ", ""))
    else:
        rows += [
            ("least cosine", f"{agreement.min_cosine:.7f}", found.worst_at or ""),
            ("mean cosine", f"{agreement.mean_cosine:.7f}", ""),
            ("largest difference of a component", f"{agreement.max_difference:.2g}", ""),
        ]
    of = f"{NEIGHBOURS} nearest neighbours on both sides, %"
    asked = f"of {shared.queries:,} texts" if shared.queries == MAX_QUERIES else ""
    return [
        *rows,
        (f"{of}: mean", f"{100 * shared.mean:.2f}", asked),
        (f"{of}: least", f"{100 * shared.least:.0f}", shared.least_at),
    ]


def comparison_json(found: SpaceComparison) -> str:
    """The same as JSON; shares of neighbours are from 0 to 1."""
    agreement, shared = found.agreement, found.neighbours
    cosines: dict[str, Any] | None = None
    if agreement is not None:
        cosines = {
            "least": agreement.min_cosine,
            "least_at": found.worst_at,
            "mean": agreement.mean_cosine,
            "max_difference": agreement.max_difference,
        }
    answer = {
        "a": dataclasses.asdict(found.left),
        "b": dataclasses.asdict(found.right),
        "texts_read": found.texts_read,
        "texts": found.texts,
        "distinct_texts": found.distinct_texts,
        "cosines": cosines,
        "neighbours": {"nearest": NEIGHBOURS, "seed": SEED} | shared._asdict(),
        "floors": {
            "same-space": {"cosine": SPACE, "neighbours": RANKING},
            "same-ranking": {"neighbours": RANKING},
        },
        "verdict": found.verdict,
    }
    return orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode()
