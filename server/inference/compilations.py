"""Compilations by torch: those of a load are expected, all others keep requests waiting.

Knows nothing of torch, so that a process may ask for them to be told before that is imported.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


class Compilations:
    """What was compiled in this process; any thread may call."""

    def __init__(self) -> None:
        self.count = 0  # of all, since the start
        self.tell: Callable[[], None] = lambda: None  # called for each that was not expected
        self._thread = threading.local()

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """What this thread has compiled meanwhile belongs to a load."""
        before, self._thread.expects = getattr(self._thread, "expects", False), True
        try:
            yield
        finally:
            self._thread.expects = before

    def note(self) -> None:
        """Called by the thread that begins to compile."""
        self.count += 1
        if not getattr(self._thread, "expects", False):
            log.warning("torch compiles while requests wait: loading has not met such a shape")
            self.tell()


COMPILATIONS = Compilations()
