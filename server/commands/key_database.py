"""The database of keys, open while a command works on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from server.settings import Settings

if TYPE_CHECKING:
    from server.access.database import Database


@contextmanager
def open_database(settings: Settings, *, make: bool = False) -> Iterator[Database]:
    """The database that the settings name.

    Args:
        make: make the data folder if it is missing; a command that only looks must not.

    Raises:
        StartupError: there is none, or it cannot be opened.
    """
    from server.access.database import Database

    if settings.database_url is None and not make:
        settings.check_data_dir()
    database = Database(settings.database())
    try:
        yield database
    finally:
        database.close()
