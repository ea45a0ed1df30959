"""Whether the file of a SQLite database is still the one that connections were made to.

SQLite goes on reading from, and writing into, a file that was deleted, moved or replaced, and it
keeps pages in memory while a file is overwritten in place. Any thread may call.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine

from server.errors import DatabaseGone

# The bytes of a file that each of its connections keeps locked; see sqlite.org/lockingv3.html.
_LOCKED_FROM, _NUM_LOCKED = 0x40000002, 510


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

    def begin_log(self, engine: Engine) -> None:
        """Let readers not wait for a writer; the file keeps that in mind.

        Raises:
            DatabaseGone: the file is not there.
            sqlalchemy.exc.SQLAlchemyError: it is no database, or cannot be written.
        """
        self.check(engine)
        with contextlib.closing(engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA journal_mode = WAL")

    def check_written(self, looks: _Looks) -> None:
        """Keep the log in mind that was just written, before it counts.

        Raises:
            DatabaseGone: another file is there than the one that looked so.
        """
        with self._lock:
            if self._look()[:2] != looks[:2]:
                raise DatabaseGone(f"{self.path} was replaced by another file")
            with contextlib.suppress(OSError):
                found = self._beside("-wal").stat()
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
        with contextlib.closing(engine.raw_connection()) as connection:
            cursor = connection.cursor()
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
            return self._beside("-wal").stat().st_size
        except OSError:
            return 0

    def _beside(self, suffix: str) -> Path:
        """A file that SQLite keeps beside the database; beside what a link leads to."""
        real = self.path.resolve()
        return real.with_name(real.name + suffix)

    def _remove_log_of_the_former(self) -> None:
        """SQLite would read it into the file that is there now; it does not belong to that.

        It does once another process has opened that file: then it holds what that one writes.
        """
        if sys.platform == "win32":  # open files cannot be removed there
            return
        import fcntl

        with contextlib.suppress(OSError), self.path.open("r+b") as file:
            log = self._beside("-wal")
            found = log.stat()
            if (found.st_dev, found.st_ino) == self._known_log:
                # Who opens the file now waits until this one is closed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _NUM_LOCKED, _LOCKED_FROM)
                log.unlink()
                self._beside("-shm").unlink()
