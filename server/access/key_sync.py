"""The keys in memory, kept in step with the database, also if that becomes another one.

Asks the database, so it is called in threads of its own, one at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keyring import Keyring
from server.errors import DatabaseEmpty, DatabaseError, DatabaseReplaced

log = logging.getLogger(__name__)

# A database without our tables may be in the middle of being restored, which tables that are made
# meanwhile would keep from succeeding; one that stays so was made on purpose.
EMPTY_PATIENCE_S = 10.0


class KeySync:
    """Reads what has changed.

    Args:
        keyring: filled from the database.
        read_the_rest: reads what else is known of a database, once it is another one.

    Raises:
        DatabaseError: the database is away.
    """

    def __init__(
        self, database: Database, keyring: Keyring, read_the_rest: Callable[[], None]
    ) -> None:
        self._database = database
        self._store = KeyStore(database)
        self.keyring = keyring
        self._read_the_rest = read_the_rest
        self._empty_since_s: float | None = None
        self._replaced: DatabaseError | None = None  # what was opened, and not read yet
        self._known = self._store.snapshot()
        keyring.replace(self._known)

    def read_changes(self) -> DatabaseError | None:
        """Read keys that have changed.

        Returns:
            If another database was taken over in place of the one before: how that was found.

        Raises:
            DatabaseError: the database is away, or empty and perhaps being restored.
        """
        version = ""
        try:
            version = self._version()
        except (DatabaseReplaced, DatabaseEmpty) as error:
            if self._database.open():
                self._replaced = error
        self._empty_since_s = None
        found = self._replaced
        if found is not None:
            for name in self._store.keep_ended(self._known, older=_is_older(found)):
                log.warning("key %s was ended before: it stays so in this database", name)
            self._read_the_rest()
        if found is not None or version != self._known.version:
            self._read_again()
        self._replaced = None
        return found

    def _version(self) -> str:
        try:
            return self._store.version()
        except DatabaseReplaced:
            raise
        except DatabaseError:
            self._check_emptiness()
            raise

    def _check_emptiness(self) -> None:
        """Raise DatabaseEmpty once the database is so for long; DatabaseError until then."""
        try:
            self._database.check_tables()
        except DatabaseEmpty as error:
            now_s = time.monotonic()
            if self._empty_since_s is None:
                self._empty_since_s = now_s
            if now_s - self._empty_since_s >= EMPTY_PATIENCE_S:
                raise
            waiting = DatabaseError(error.message)
            waiting.state = error.state
            raise waiting from error
        self._empty_since_s = None

    def _read_again(self) -> None:
        asked = self.keyring.asks
        self._known = self._store.snapshot()
        self.keyring.replace(self._known)
        if self.keyring.asks and not asked:
            log.warning("the database holds a key: from now on one is asked for")


def _is_older(found: DatabaseError) -> bool:
    return isinstance(found, DatabaseReplaced) and found.older
