from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.offline import text_lists
from server.offline.text_lists import check_texts, slices_of
from server.offline.texts import TextReader


@given(st.lists(st.text("ab", min_size=1, max_size=9), max_size=40), st.integers(1, 7))
def test_slices_are_the_windows_that_a_file_with_these_lines_has(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], most: int
) -> None:
    path = Path(tmp_path_factory.mktemp("lists")) / "a.txt"
    path.write_text("".join(f"{text}\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lists, "WINDOW_TEXTS", most)
        patch.setattr(text_lists, "WINDOW_CHARS", 3 * most)
        slices = list(slices_of(texts))
    with TextReader(path) as reader:
        windows = list(reader.windows(most_texts=most, most_chars=3 * most))
    assert [one.texts for one in slices] == [window.texts for window in windows]
    assert [text for one in slices for text in one.texts] == texts
    for one in slices:
        for index, text in enumerate(one.texts):
            assert texts[one.start + index] == text
            assert one.position(index) == f"input[{one.start + index}]"


def test_texts_of_any_sequence_become_a_list() -> None:
    assert check_texts(("a", "é", "😀")) == ["a", "é", "😀"]
