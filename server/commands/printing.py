"""How commands print tables and JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def print_json(value: object) -> None:
    """A JSON document for people and programs."""
    import orjson

    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def print_table(table: Table) -> None:
    """A table as wide as the terminal; a pipe has no width, and there no cell may be cut."""
    from rich.console import Console

    (Console() if sys.stdout.isatty() else Console(width=10_000)).print(table)


def print_plain_table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table of texts that may come from clients: neither markup nor what steers a terminal acts."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*titles)
    for row in rows:
        table.add_row(
            *(Text("".join(c if c.isprintable() else "\ufffd" for c in cell)) for cell in row)
        )
    print_table(table)
