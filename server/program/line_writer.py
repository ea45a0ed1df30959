"""Lines that a thread of its own writes to a file, so that who has a line never waits for a reader.

A pipe that nobody reads, a stopped terminal or a slow disk holds up that thread alone. What has no
room, or cannot be written, is dropped and counted, and one line says so as soon as writing works
again. Knows nothing of what the lines say.
"""

from __future__ import annotations

import io
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import NamedTuple

MAX_WAITING_BYTES = 4 * 1024 * 1024
# The process's end is not kept waiting longer for a reader who takes nothing, nor for a slow one.
FLUSH_TIMEOUT_S, SLOW_FLUSH_TIMEOUT_S = 1.0, 5.0
_LONGEST_LINE_CHARS = 64 * 1024  # what is longer is written before it ends
# Longer writes of several processes to one pipe could end up inside each other.
_PIPE_WRITE_BYTES = select.PIPE_BUF if hasattr(select, "PIPE_BUF") else 512
_FILE_WRITE_BYTES = 64 * 1024
_LOOK_INTERVAL_S = 0.005
# Between two times that it has written all there is: waking a thread for each line costs who gives
# it more than the line.
_PAUSE_S = 0.02


class _Waiting(NamedTuple):
    content: bytes
    refused: int  # how many had been refused before it


class LineWriter:
    """Writes what it is given in that order; any thread may give, and signal handlers, too.

    Args:
        file: number of an open file; never closed here.
        dropped_line: what says that this many were dropped.
    """

    def __init__(self, file: int, dropped_line: Callable[[int], bytes]) -> None:
        self._file = file
        self._dropped_line = dropped_line
        self._is_file = stat.S_ISREG(os.fstat(file).st_mode)
        self._lock = threading.RLock()  # a signal's handler may come in between
        self._waiting: SimpleQueue[_Waiting] = SimpleQueue()
        self._accepted_bytes = self._refused = 0  # of those who give
        self._handled_bytes = self._lost = self._told = 0  # of the thread
        self._is_torn = False  # the last line in the file has no end
        self._is_given_up = False
        threading.Thread(target=self._run, name="line-writer", daemon=True).start()

    @property
    def dropped(self) -> int:
        """How many were dropped so far."""
        return self._refused + self._lost

    def write(self, lines: bytes) -> None:
        """Have one or more whole lines written, or drop them if too much waits already."""
        with self._lock:
            waiting_bytes = self._accepted_bytes - self._handled_bytes
            if waiting_bytes + len(lines) > MAX_WAITING_BYTES:
                self._refused += 1
                return
            self._accepted_bytes += len(lines)
            self._waiting.put(_Waiting(lines, self._refused))

    def flush(self) -> None:
        """Wait until all is written, as long as lines are taken; once given up, no more."""
        now_s = time.monotonic()
        end_s, deadline_s, seen = now_s + SLOW_FLUSH_TIMEOUT_S, 0.0, -1
        while self._handled_bytes < self._accepted_bytes and not self._is_given_up:
            if seen != self._handled_bytes:
                seen, deadline_s = self._handled_bytes, min(now_s + FLUSH_TIMEOUT_S, end_s)
            self._is_given_up = now_s > deadline_s
            time.sleep(_LOOK_INTERVAL_S)
            now_s = time.monotonic()

    def _run(self) -> None:
        for batch in self._batches():
            content, told = bytearray(), self._told
            for lines, refused in batch:
                content += self._news(told, refused + self._lost) + lines
                told = max(told, refused + self._lost)
            if self._waiting.empty():  # what was refused meanwhile came after all of these
                dropped = self.dropped
                content += self._news(told, dropped)
                told = dropped
            if self._write(bytes(content)):
                self._told = told
            else:
                self._lost += len(batch)
            self._handled_bytes += sum(len(one.content) for one in batch)

    def _news(self, told: int, dropped: int) -> bytes:
        return self._dropped_line(dropped - told) if dropped > told else b""

    def _batches(self) -> Iterator[list[_Waiting]]:
        """What waits, as much at a time as one write may take, and at least one."""
        most = _FILE_WRITE_BYTES if self._is_file else _PIPE_WRITE_BYTES
        batch: list[_Waiting] = []
        size = 0
        while True:
            one = self._waiting.get()
            if batch and size + len(one.content) > most:
                yield batch
                batch, size = [], 0
            batch.append(one)
            size += len(one.content)
            if self._waiting.empty():
                yield batch
                batch, size = [], 0
                # Not time.sleep: under libfaketime it lasts an hour when the clock is set back by one.
                select.select([], [], [], _PAUSE_S)

    def _write(self, content: bytes) -> bool:
        """Whether all of it could be written; waits for the reader."""
        left = memoryview(b"\n" * self._is_torn + content)
        size = len(left)
        while left:
            try:
                left = left[os.write(self._file, left) :]
            except BlockingIOError:  # who shares the file made it so
                select.select([], [self._file], [], FLUSH_TIMEOUT_S)
            except OSError:
                break
        self._is_torn = bool(left) and (self._is_torn or len(left) < size)
        return not left


class LineStream(io.TextIOBase):
    """A text stream whose lines a writer writes, in place of sys.stderr; any thread may write.

    A line is kept until it ends.
    """

    def __init__(self, writer: LineWriter, file: int, encoding: str) -> None:
        self._writer = writer
        self._file = file
        self._encoding = encoding
        self._begun = threading.local()  # the line of each thread

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As that of the stream whose place it takes."""
        return self._encoding

    def write(self, text: str) -> int:
        """Take the text; waits for nobody."""
        whole, end, begun = (getattr(self._begun, "line", "") + text).rpartition("\n")
        if len(begun) > _LONGEST_LINE_CHARS:  # a bar of progress never ends a line
            whole, end, begun = whole + end, begun, ""
        self._begun.line = begun
        if end:
            self._writer.write((whole + end).encode(self._encoding, "backslashreplace"))
        return len(text)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._file)

    def fileno(self) -> int:
        return self._file
