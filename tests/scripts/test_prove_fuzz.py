"""`scripts/prove/fuzz.py`, in small, and without what tells which code was reached."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.prove.fuzz import TARGETS as NAMES
from tests.fuzz_targets import TARGETS


def test_every_target_is_there() -> None:
    assert tuple(TARGETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_was_found_once_is_right_now(name: str) -> None:
    target = TARGETS[name]
    for content in (*target.seeds, *target.found):
        target.try_bytes(content)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_that_were_changed_are_read_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=200, derandomize=True)  # who looks for more runs the script
    @given(
        st.sampled_from((*target.seeds, *target.found)),
        st.lists(
            st.tuples(
                st.floats(0, 1),  # where
                st.integers(0, 8),  # how much is lost
                st.sampled_from(target.words) | st.binary(max_size=4),
            ),
            min_size=1,
            max_size=3,
        ),
    )
    def try_changed(content: bytes, changes: list[tuple[float, int, bytes]]) -> None:
        for place, lost, put in changes:
            begin = int(place * len(content))
            content = content[:begin] + put + content[begin + lost :]
        target.try_bytes(content)

    try_changed()
