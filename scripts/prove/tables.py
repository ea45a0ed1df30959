"""How every attacker is called, and the table that it prints."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from server.program.termination import raise_when_stopped


def options(doc: str | None, **defaults: float | str) -> argparse.Namespace:
    """What the command line says in place of these numbers and texts; `--help` shows `doc`.

    From then on SIGTERM clears away what was begun.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw)
    for name, default in defaults.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"({default})")
    given = parser.parse_args()
    raise_when_stopped()
    return given


def print_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """A Markdown table, each row as soon as it is known; floats have one digit."""
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        cells = (f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row)
        print(f"| {' | '.join(cells)} |", flush=True)
