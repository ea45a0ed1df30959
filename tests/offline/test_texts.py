from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import TextFileError
from server.offline.texts import MAX_LINE_BYTES, START, Mark, TextReader, TextWindow, sample_texts


def read(path: Path, content: bytes | str, **options: object) -> list[str]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with TextReader(path, **options) as reader:  # type: ignore[arg-type]
        return [text for window in reader.windows() for text in window.texts]


def windows_of(path: Path, *, behind: Mark = START, **most: int) -> list[TextWindow]:
    with TextReader(path) as reader:
        reader.skip(behind)
        return list(reader.windows(**most))


@pytest.fixture
def txt(tmp_path: Path) -> Path:
    return tmp_path / "a.txt"


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


LINES = st.lists(
    st.text(st.characters(exclude_characters="\n\ufeff", exclude_categories=["Cs"])).filter(
        lambda line: line.strip() and not line.endswith("\r")
    ),
    min_size=1,
)


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_every_line_is_one_text_as_it_stands(
    lines: list[str], line_end: str, ends: bool, marked: bool
) -> None:
    content = line_end.join(lines) + (line_end if ends else "")
    with tempfile.TemporaryDirectory() as folder:
        found = read(Path(folder, "a.txt"), ("\ufeff" if marked else "") + content)
    assert found == lines


@given(LINES, st.sampled_from([None, "text", "body"]))
def test_a_json_line_is_a_string_or_an_object_with_the_field(
    lines: list[str], field: str | None
) -> None:
    rows = [json.dumps({field: line, "id": 1} if field else line) for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        found = read(Path(folder, "a.jsonl"), "\n".join(rows), field=field or "text")
    assert found == lines


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"one\n\nthree", "line 2: blank"),
        (b"one\n \t\n", "line 2: blank"),
        (b"one\ntw\xffo\n", "line 2: not UTF-8 at byte 3"),
    ],
)
def test_a_line_that_cannot_be_embedded_is_named(txt: Path, content: bytes, named: str) -> None:
    with pytest.raises(TextFileError, match=f"{txt} {named}"):
        read(txt, content)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2: not JSON"),
        ("7", "line 2: must be a string"),
        ('{"text": null}', "line 2: must be a string"),
        ('{"body": "b"}', "line 2: has no field 'text'"),
        ('{"text": ""}', "line 2: blank"),
    ],
)
def test_a_json_line_that_cannot_be_embedded_is_named(jsonl: Path, line: str, named: str) -> None:
    with pytest.raises(TextFileError, match=f"{jsonl} {named}"):
        read(jsonl, f'"one"\n{line}\n')


def test_blank_lines_can_be_left_out(txt: Path, jsonl: Path) -> None:
    assert read(txt, "\none\n \n\ntwo\n\n", skip_blank=True) == ["one", "two"]
    assert read(jsonl, '"one"\n\n{"text": " "}\n"two"', skip_blank=True) == ["one", "two"]


def test_the_texts_before_a_bad_line_come_out_first(txt: Path) -> None:
    txt.write_text("one\ntwo\n\n")
    with TextReader(txt) as reader:
        windows = reader.windows()
        assert next(windows).texts == ["one", "two"]
        with pytest.raises(TextFileError, match="line 3"):
            next(windows)


def test_a_line_longer_than_a_request_may_be_is_refused_unread(txt: Path) -> None:
    longest = (MAX_LINE_BYTES - 1) * "x"
    assert read(txt, longest + "\n") == [longest]
    with pytest.raises(TextFileError, match=f"line 2: longer than {MAX_LINE_BYTES} bytes"):
        read(txt, f"one\n{longest}xx")


def test_a_window_is_bounded_by_texts_and_by_characters(txt: Path) -> None:
    txt.write_text("a\nb\nc\n123456\n7890\nd\n")
    windows = windows_of(txt, most_texts=3, most_chars=10)
    assert [window.texts for window in windows] == [["a", "b", "c"], ["123456", "7890"], ["d"]]
    assert [window.position(0) for window in windows] == [f"{txt} line {n}" for n in (1, 4, 6)]


@given(LINES, st.integers(1, 5))
def test_reading_can_go_on_behind_any_window(lines: list[str], window_texts: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_bytes("\n".join(lines).encode())
        windows = windows_of(path, most_texts=window_texts)
        for number, window in enumerate(windows):
            behind = windows_of(path, behind=window.end, most_texts=window_texts)
            assert behind == windows[number + 1 :]


@pytest.mark.parametrize("content", ["one\ntwx\nthree\n", "one\n"])
def test_going_on_behind_changed_lines_is_refused(txt: Path, content: str) -> None:
    txt.write_text("one\ntwo\n")
    (window,) = windows_of(txt)
    txt.write_text(content)
    with pytest.raises(TextFileError, match=f"{txt} has changed"):
        windows_of(txt, behind=window.end)


@pytest.mark.parametrize("name", ["a.csv", "a", "a.TXT"])
def test_a_name_that_tells_no_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(TextFileError, match=r"\.txt .* or \.jsonl"):
        TextReader(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a", "folder/a.txt"])
def test_a_file_that_is_absent_is_called_absent(tmp_path: Path, name: str) -> None:
    with pytest.raises(TextFileError, match=f"^{tmp_path / name} does not exist$"):
        TextReader(tmp_path / name)


class TestSample:
    def test_all_distinct_texts_in_an_order_fixed_by_the_seed(self, txt: Path, jsonl: Path) -> None:
        txt.write_text("a\nb\n\na\n")
        jsonl.write_text('{"text": "c"}\n"b"')
        drawn, there = sample_texts([txt, jsonl], field="text", most=100, seed=1)
        assert (sorted(drawn), there) == (["a", "b", "c"], 5)
        assert sample_texts([txt, jsonl], field="text", most=100, seed=1)[0] == drawn

    def test_each_text_has_the_same_chance_of_being_drawn(self, txt: Path) -> None:
        txt.write_text("\n".join(map(str, range(20))))
        counts = np.zeros(20)
        for seed in range(2000):
            drawn, there = sample_texts([txt], field="text", most=5, seed=seed)
            assert (len(drawn), there) == (5, 20)
            counts[[int(text) for text in drawn]] += 1
        # 500 expected each, with a standard deviation of 19.
        assert counts.min() > 400
        assert counts.max() < 600
