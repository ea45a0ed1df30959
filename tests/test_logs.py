from __future__ import annotations

import logging
import re
import string
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.logs import JsonFormatter, TextFormatter, configure, dropped_lines, request_id
from server.program import line_writer

SANE = string.ascii_letters + string.digits + "._:/+=-"
OWN = re.compile(r"req_[0-9a-f]{32}")


@given(st.text(SANE, min_size=1, max_size=128))
def test_a_short_and_plain_id_of_the_caller_is_kept(sent: str) -> None:
    assert request_id(sent) == sent


@given(
    st.text(SANE, max_size=60),
    st.characters(exclude_characters=SANE),
    st.text(SANE, max_size=60),
)
def test_an_id_with_any_other_character_is_replaced(before: str, odd: str, after: str) -> None:
    # Line breaks would forge log lines, control characters would reach terminals.
    assert OWN.fullmatch(request_id(before + odd + after))


@given(st.text(SANE, min_size=129, max_size=2000))
def test_an_overlong_id_is_replaced(sent: str) -> None:
    assert OWN.fullmatch(request_id(sent))


@pytest.mark.parametrize("sent", [None, ""])
def test_without_an_id_there_is_a_new_one(sent: str | None) -> None:
    assert OWN.fullmatch(request_id(sent))


def test_no_two_new_ids_are_equal() -> None:
    assert len({request_id(None) for _ in range(1000)}) == 1000


anything = st.text(max_size=200)
plain_values = st.one_of(
    st.integers(-(2**53), 2**53), anything, st.dictionaries(st.sampled_from("ab"), st.floats(0, 9))
)


def record(message: str, *args: object, fields: dict[str, Any] | None = None) -> logging.LogRecord:
    made = logging.LogRecord("server.room", logging.WARNING, "path", 1, message, args, None)
    if fields is not None:
        made.fields = fields
    return made


def raised(message: str) -> Any:
    try:
        raise ValueError(message)
    except ValueError:
        return sys.exc_info()


@given(anything, st.dictionaries(st.sampled_from(["path", "status", "ms"]), plain_values))
def test_a_json_line_is_one_object_whatever_is_in_it(message: str, fields: dict[str, Any]) -> None:
    line = JsonFormatter().format(record("%s", message, fields=fields))
    assert "\n" not in line
    assert "\r" not in line
    told = orjson.loads(line)
    assert set(told) == {"time", "level", "logger", "message", *fields}
    assert told["level"] == "warning"
    assert told["logger"] == "server.room"
    assert told["message"] == message


def test_the_time_of_a_json_line_is_iso_in_utc() -> None:
    made = record("x")
    made.created = 1_700_000_000.1234
    assert orjson.loads(JsonFormatter().format(made))["time"] == "2023-11-14T22:13:20.123+00:00"


@given(anything)
def test_an_exception_is_a_traceback_inside_the_json_line(message: str) -> None:
    made = record("it failed")
    made.exc_info = raised(message)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    told = orjson.loads(line)
    assert told["message"] == "it failed"
    assert told["traceback"].startswith("Traceback (most recent call last):\n")
    assert "ValueError" in told["traceback"]


def test_a_line_without_an_exception_has_no_traceback() -> None:
    assert "traceback" not in orjson.loads(JsonFormatter().format(record("x")))


def test_a_text_line_is_time_level_logger_message_and_fields() -> None:
    fields = {"path": "/a", "status": 200, "ms": {"total": 1.5, "read": 0.25}}
    line = TextFormatter().format(record("request", fields=fields))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING server\.room request "
        r"path=/a status=200 ms=total:1\.5,read:0\.25",
        line,
    )


def test_a_text_line_without_fields_is_just_the_message() -> None:
    assert TextFormatter().format(record("two %s", "words")).endswith(" server.room two words")


def test_a_text_line_is_followed_by_its_traceback() -> None:
    made = record("it failed", fields={"status": 500})
    made.exc_info = raised("why")
    first, *rest = TextFormatter().format(made).splitlines()
    assert first.endswith("it failed status=500")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ValueError: why"


def test_the_log_and_what_is_printed_to_standard_error_come_in_their_order(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_writer, "FLUSH_TIMEOUT_S", 30.0)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    with open(2, "w", closefd=False) as ours:
        monkeypatch.setattr(sys, "stderr", ours)
        try:
            configure("info", "json")
            for number in range(100):
                logging.getLogger("x").info("logged %d", number)
                print("printed", number, file=sys.stderr)
        finally:
            logging.captureWarnings(capture=False)
        root.handlers[0].flush()
    lines = capfd.readouterr().err.splitlines()
    assert [orjson.loads(one)["message"] for one in lines[::2]] == [
        f"logged {number}" for number in range(100)
    ]
    assert lines[1::2] == [f"printed {number}" for number in range(100)]
    assert dropped_lines() == 0
