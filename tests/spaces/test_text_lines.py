from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import TextFileError
from server.spaces.text_lines import TextLine, read_text_lines, windows_of


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    lines, objects = tmp_path / "a.txt", tmp_path / "b.jsonl"
    lines.write_text("one\n \ntwo\n")
    objects.write_text("".join(json.dumps({"body": f"{i}"}) + "\n" for i in range(100)))
    return [lines, objects]


def test_each_text_knows_its_file_and_line(files: list[Path]) -> None:
    found, count = read_text_lines(files, field="body", skip_blank=True, most=1000, seed=0)
    assert count == 102
    assert [one.text for one in found] == ["one", "two", *map(str, range(100))]
    assert [one.place for one in found[:3]] == [
        f"{files[0]} line 1", f"{files[0]} line 3", f"{files[1]} line 1",
    ]  # fmt: skip


def test_a_blank_line_is_refused_unless_it_may_be_left_out(files: list[Path]) -> None:
    with pytest.raises(TextFileError, match=r"a\.txt line 2: blank"):
        read_text_lines(files, field="body", skip_blank=False, most=1000, seed=0)


def test_of_many_texts_a_seed_draws_some_which_stay_in_order(files: list[Path]) -> None:
    def drawn(seed: int) -> list[TextLine]:
        some, count = read_text_lines(files, field="body", skip_blank=True, most=20, seed=seed)
        assert (len(some), count) == (20, 102)
        return some

    whole, _ = read_text_lines(files, field="body", skip_blank=True, most=102, seed=0)
    assert drawn(0) == drawn(0) == [one for one in whole if one in drawn(0)]
    assert drawn(0) != drawn(1)
    assert drawn(0) != whole[:20]


LINES = st.lists(st.tuples(st.sampled_from("ab"), st.text("x", min_size=1, max_size=9)))


@given(LINES, st.integers(1, 4), st.integers(1, 12))
def test_windows_are_bounded_and_lose_nothing(
    given_lines: list[tuple[str, str]], most_texts: int, most_chars: int
) -> None:
    lines = [
        TextLine(number, source, 10 * number, text)
        for number, (source, text) in enumerate(given_lines)
    ]
    done = 0
    for window in windows_of(lines, most_texts=most_texts, most_chars=most_chars):
        size = len(window.texts)
        here = lines[done : done + size]
        done += size
        assert [window.position(i) for i in range(size)] == [one.place for one in here]
        assert list(window.texts) == [one.text for one in here]
        assert window.end.texts == done
        assert 1 <= size <= most_texts
        chars = sum(map(len, window.texts))
        assert size == 1 or chars <= most_chars
        assert {one.source for one in here} == {window.source}
        for following in lines[done : done + 1]:  # did not fit into it
            full = size == most_texts or chars + len(following.text) > most_chars
            assert full or following.source != window.source
    assert done == len(lines)
