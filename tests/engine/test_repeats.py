"""Equal sequences of a request are found wherever they stand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.engine.repeats import fill_repeats, find_repeats

few = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=20)


@given(few)
def test_a_repeat_points_to_the_first_row_that_is_equal(rows: list[list[int]]) -> None:
    token_ids = [np.array(row, np.int32) for row in rows]
    expected = {n: rows.index(row) for n, row in enumerate(rows) if rows.index(row) < n}
    assert find_repeats(token_ids) == expected


@given(few)
def test_every_row_has_the_vector_of_its_text_then(rows: list[list[int]]) -> None:
    repeats = find_repeats([np.array(row, np.int32) for row in rows])
    of_text = {tuple(row): float(n) for n, row in enumerate(rows)}  # the last is as good as any
    vectors = np.array(
        [[np.nan if n in repeats else of_text[tuple(row)]] for n, row in enumerate(rows)],
        np.float32,
    )
    fill_repeats(vectors, repeats)
    assert vectors[:, 0].tolist() == [of_text[tuple(row)] for row in rows]
