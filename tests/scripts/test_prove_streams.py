"""`scripts/prove/streams.py`, in small."""

from __future__ import annotations

import pytest

from scripts.prove.streams import attack

pytestmark = pytest.mark.server

MODEL = ("--model", "all-MiniLM-L6-v2")
REQUESTS = 600  # more lines than a pipe holds


@pytest.mark.parametrize(
    ("name", "frontends"),
    [
        ("all closed", 2),
        ("stderr a pipe that nobody reads", 1),
        ("stdout a pipe whose reader is gone", 2),
    ],
)
def test_a_stream_keeps_no_server_from_serving_or_ending(name: str, frontends: int) -> None:
    seen = attack(name, *MODEL, "--frontends", str(frontends), requests=REQUESTS)
    assert (seen.ready, seen.answered, seen.exit_code) == (True, REQUESTS, 0)
    assert "Traceback" not in seen.log


def test_the_line_that_standard_output_does_not_take_is_in_the_log() -> None:
    seen = attack("stdout on a full disk", *MODEL, requests=1)
    assert (seen.ready, seen.answered, seen.exit_code) == (True, 1, 0)
    (line,) = (line for line in seen.log.splitlines() if "standard output" in line)
    assert "WARNING server.http.listening standard output: No space left on device. Ready." in line
