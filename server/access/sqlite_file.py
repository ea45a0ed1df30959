"""Whether the file of a SQLite database is still the one that connections were made to.

SQLite goes on reading from, and writing into, a file that was deleted, moved or replaced, and it
keeps pages in memory while a file is overwritten in place. Any thread may call.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine

from server.errors import DatabaseGone


class _Looks(NamedTuple):
    """What changes when a file becomes another, or is overwritten."""

    device: int
    inode: int
    num_bytes: int
    changed_ns: int


class SqliteFile:
    """The file of a database, beside which SQLite keeps a log of what is not in it yet.

    Args:
        path: absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = path.with_name(path.name + "-wal")
        self._log_index = path.with_name(path.name + "-shm")
        self._known: _Looks | None = None
        self._known_log: tuple[int, int] | None = None  # device and inode of its log
        self._lock = threading.Lock()

    def check(self, engine: Engine) -> _Looks:
        """Let go of connections unless the file looks as it did.

        Raises:
            DatabaseGone: it is not there.
        """
        with self._lock:
            looks = self._look()
            if looks != self._known:
                if self._known is not None and looks[:2] != self._known[:2]:
                    self._remove_log_of_the_former()
                engine.dispose()
                # Again, since SQLite writes what the log holds when the last connection is closed.
                self._known = looks = self._look()
            return looks

    def check_written(self, looks: _Looks) -> None:
        """Keep the log in mind that was just written, before it counts.

        Raises:
            DatabaseGone: another file is there than the one that looked so.
        """
        with self._lock:
            if self._look()[:2] != looks[:2]:
                raise DatabaseGone(f"{self.path} was replaced by another file")
            with contextlib.suppress(OSError):
                found = self._log.stat()
                self._known_log = found.st_dev, found.st_ino

    def empty_log(self, engine: Engine) -> None:
        """Let SQLite put what its log holds into the file, unless others read or write just now.

        So the file is whole when somebody copies it, and a log that stays behind when the file is
        replaced holds nothing that would be read into the next one.

        Raises:
            DatabaseGone: the file is not there.
            sqlalchemy.exc.SQLAlchemyError: it cannot be written.
        """
        if self._log_bytes() == 0:
            return
        self.check(engine)
        with engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            cursor = raw.cursor()
            patience_ms = cursor.execute("PRAGMA busy_timeout").fetchone()[0]
            cursor.execute("PRAGMA busy_timeout = 0")
            try:
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                cursor.execute(f"PRAGMA busy_timeout = {patience_ms}")
        with self._lock:
            looks = self._look()
            if self._known is None or looks[:2] == self._known[:2]:
                self._known = looks

    def _look(self) -> _Looks:
        try:
            found = self.path.stat()
        except OSError as error:
            raise DatabaseGone(f"{self.path} is not there any more") from error
        return _Looks(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def _log_bytes(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    def _remove_log_of_the_former(self) -> None:
        """SQLite would read it into the file that is there now; it does not belong to that."""
        with contextlib.suppress(OSError):
            found = self._log.stat()
            if (found.st_dev, found.st_ino) == self._known_log:
                self._log.unlink()
                self._log_index.unlink()
