"""What each size of the vectors keeps, for people and programs to read."""

from __future__ import annotations

import orjson
from rich.table import Table

from server.commands.printing import print_table
from server.fitting.fit import RotationFit
from server.fitting.measuring import Kept
from server.fitting.plots import Panel
from server.fitting.survey import Survey
from server.inference.neighbours import MAX_QUERIES, NEIGHBOURS

_SHARE = f"of {NEIGHBOURS} neighbours kept, %"
_SPEARMAN = "scored pairs, Spearman x 100"


def print_dimensions(survey: Survey) -> None:
    """The table of `dimensions`."""
    card, rows, texts, there, _ = survey
    scored = rows[0].spearman is not None
    table = Table(title=f"{card.name} on {_texts(texts, there)}")
    titles = ["dimensions", "bytes a million vectors", _SHARE, "a tenth of the texts keep at most"]
    for title in [*titles, *([_SPEARMAN] if scored else [])]:
        table.add_column(title, justify="right")
    for row in rows:
        cells = [str(row.dimensions), f"{row.bytes_per_million:,}"]
        cells += [_percent(row.overlap), _percent(row.overlap_p10)]
        table.add_row(*cells, *([_score(row)] if scored else []))
    print_table(table)


def dimensions_json(survey: Survey) -> str:
    """The same as JSON; overlaps are shares from 0 to 1."""
    card, rows, texts, there, fingerprint = survey
    answer = {
        "model": card.name,
        "fingerprint": fingerprint,
        "texts_read": there,
        "texts": texts,
        "queries": min(texts, MAX_QUERIES),
        "neighbours": NEIGHBOURS,
        "sizes": [row._asdict() | {"bytes_per_million": row.bytes_per_million} for row in rows],
    }
    return orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode()


def dimensions_panels(survey: Survey) -> list[Panel]:
    """The plot of `dimensions`."""
    card, rows = survey.card, survey.rows
    sizes = [row.dimensions for row in rows]
    lines = {
        "mean": [100 * row.overlap for row in rows],
        "lowest tenth of the texts": [100 * row.overlap_p10 for row in rows],
    }
    panels = [Panel(f"{card.name}: {_SHARE}", sizes, lines)]
    if scores := [row.spearman for row in rows if row.spearman is not None]:
        panels.append(Panel(_SPEARMAN, sizes, {card.name: scores}))
    return panels


def print_comparison(found: RotationFit) -> None:
    """The table of `models fit-rotation`: plain truncation before, the rotation after."""
    plain, rotated = found.plain, found.rotated
    scored = plain[0].spearman is not None
    table = Table(
        title=f"fitted to {found.fitted:,} texts, measured on {found.held_out:,} others "
        f"(read: {found.texts_read:,})"
    )
    titles = ["dimensions", f"plain: {_SHARE}", f"rotated: {_SHARE}"]
    titles += [f"plain: {_SPEARMAN}", f"rotated: {_SPEARMAN}"] if scored else []
    for title in titles:
        table.add_column(title, justify="right")
    for before, after in zip(plain, rotated, strict=True):
        cells = [str(before.dimensions), _percent(before.overlap), _percent(after.overlap)]
        cells += [_score(before), _score(after)] if scored else []
        table.add_row(*cells)
    print_table(table)


def comparison_panels(found: RotationFit) -> list[Panel]:
    """The plot of `models fit-rotation`."""
    plain, rotated = found.plain, found.rotated
    sizes = [row.dimensions for row in plain]
    named = {"learned rotation": rotated, "plain truncation": plain}
    overlaps = {label: [100 * row.overlap for row in rows] for label, rows in named.items()}
    panels = [Panel(f"Texts held out: {_SHARE}", sizes, overlaps)]
    scores = {
        label: [row.spearman for row in rows if row.spearman is not None]
        for label, rows in named.items()
    }
    if scores["plain truncation"]:
        panels.insert(0, Panel(_SPEARMAN, sizes, scores))
    return panels


def _texts(texts: int, there: int) -> str:
    drawn = f"{texts:,} distinct texts of {there:,}" if texts < there else f"{texts:,} texts"
    return f"{drawn}, neighbours of {MAX_QUERIES:,} among all" if texts > MAX_QUERIES else drawn


def _score(row: Kept) -> str:
    return "-" if row.spearman is None else f"{row.spearman:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
