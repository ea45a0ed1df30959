from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.logs import request_id

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
