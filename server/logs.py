"""How log lines look, and the request id in them."""

from __future__ import annotations

import logging
import re
import secrets
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from server.program.line_writer import LineStream, LineWriter

ACCESS_LOGGER = "server.access_log"

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)


def request_id(sent: str | None) -> str:
    """The caller's id if it is short and plain, else a new one."""
    if sent and _SANE_REQUEST_ID.fullmatch(sent):
        return sent
    return f"req_{secrets.token_hex(16)}"


class TextFormatter(logging.Formatter):
    """One line for people; a request's fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        fields = getattr(record, "fields", {})
        return " ".join((line, *(f"{name}={_plain(value)}" for name, value in fields.items())))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


class BesideHandler(logging.Handler):
    """Formats a record where it is logged, since it may change; the line is written elsewhere."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.writer.write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait for what waits to be written, for a second at most."""
        self.writer.flush()


def configure(level: str, log_format: Literal["text", "json"]) -> None:
    """Write this process's log to standard error, one line an event; nobody waits for its reader.

    What else is written to `sys.stderr`, as a traceback of a thread, goes the same way. At the
    process's end `logging` flushes.
    """
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()

    def dropped_line(number: int) -> bytes:
        record = logging.LogRecord(
            __name__, logging.WARNING, "", 0,
            "%d log lines were dropped: standard error did not take them", (number,), None,
        )  # fmt: skip
        return formatter.format(record).encode() + b"\n"

    file = sys.stderr.fileno()
    writer = LineWriter(file, dropped_line)
    handler = BesideHandler(writer)
    handler.setFormatter(formatter)
    sys.stderr = LineStream(writer, file, sys.stderr.encoding)
    logging.captureWarnings(capture=True)  # what libraries warn of is a log line, too
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn tells start and stop in its own words; this server has its own lines for them.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def dropped_lines() -> int:
    """How many lines of this process's log were dropped so far."""
    handlers = logging.getLogger().handlers
    return sum(one.writer.dropped for one in handlers if isinstance(one, BesideHandler))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{inner}" for name, inner in value.items())
    return str(value)
