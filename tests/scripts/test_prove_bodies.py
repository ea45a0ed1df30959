"""`scripts/prove/bodies.py`, in small."""

from __future__ import annotations

import pytest

from scripts.prove.bodies import BODIES, attack
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server

SIZE = 8 * 1024 * 1024


def test_no_body_becomes_much_more_than_it_is() -> None:
    with ServerProcess("--model", "all-MiniLM-L6-v2") as server:
        attacks = list(attack(server, SIZE))
    assert [one.name for one in attacks] == list(BODIES)
    read = {one.name for one in attacks if one.status == 200}
    assert {one.status for one in attacks} == {200, 400}
    # The model's length is 256 tokens, and one word of any length is one.
    assert read == {
        "one text",
        "a text with one emoji",
        "a text of escapes",
    }
    for name, _, _, cost in attacks:
        # As it came, as a text (of four bytes a letter for an emoji), and what the tokenizer makes.
        most = 8 * SIZE if name in read else 2 * SIZE
        assert cost.peak_bytes < most, name
