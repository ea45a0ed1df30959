"""The command `embedding-server usage`.

Imports what it needs when it runs, so that mistakes and `--help` answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from server.commands.flags import with_flags
from server.commands.key_database import open_database
from server.commands.key_values import first_day
from server.commands.printing import print_json, print_plain_table
from server.errors import KeyRefused
from server.settings import Settings


@with_flags("database_url", "data_dir")
def usage(
    settings: Settings,
    by: Annotated[str, typer.Option(help="Sum up by key, model, user or day.")] = "key",
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="First day (2026-11-01, UTC), or 7d ago.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Count this key only, by name or id.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show only so many rows.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Show requests and tokens by key, model, user or day."""
    from server.access.usage_report import By, usage_by

    if by not in set(By):
        raise KeyRefused(f"--by {by}: must be one of {', '.join(By)}")
    with open_database(settings) as database:
        sums = usage_by(database, By(by), since=first_day(since), key=key)[:top]
    if json:
        print_json([{by: row.name, "requests": row.requests, "tokens": row.tokens} for row in sums])
    else:
        print_plain_table(
            (by, "requests", "tokens"),
            [(row.name or "-", str(row.requests), str(row.tokens)) for row in sums],
        )
