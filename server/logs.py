"""How log lines look, and the request id in them."""

from __future__ import annotations

import logging
import re
import sys
import uuid

ACCESS_LOGGER = "server.access_log"

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)


def request_id(sent: str | None) -> str:
    """The caller's id if it is short and plain, else a new one."""
    if sent and _SANE_REQUEST_ID.fullmatch(sent):
        return sent
    return f"req_{uuid.uuid4().hex}"


def configure(level: str) -> None:
    """Write this process's log to standard error, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn tells start and stop in its own words; this server has its own lines for them.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
