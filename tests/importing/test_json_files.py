from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing.json_files import (
    MAX_JSON_BYTES,
    is_there,
    read_any_json,
    read_json,
    read_json_if_there,
)


def test_an_absent_file_says_nothing_where_it_may_be_absent(tmp_path: Path) -> None:
    assert read_json_if_there(tmp_path / "absent.json") == {}
    with pytest.raises(ImportRefused, match=r"absent\.json: No such file"):
        read_json(tmp_path / "absent.json")


def test_a_link_that_leads_nowhere_is_not_taken_for_absent(tmp_path: Path) -> None:
    link = tmp_path / "modules.json"
    link.symlink_to(tmp_path / "absent")
    assert is_there(link)
    with pytest.raises(ImportRefused, match=r"modules\.json: No such file"):
        read_json_if_there(link)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ImportRefused, match=said):
        read_json(tmp_path / "a.json")


def test_a_list_is_read_where_one_is_expected(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    assert read_any_json(tmp_path / "a.json") == [1]


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ImportRefused, match="not a file"):
        read_json(tmp_path / "a.json")


def test_a_file_that_would_take_all_memory_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(
        ImportRefused, match=r"config\.json: has 1,099,511,627,776 bytes, more than"
    ):
        read_json(tmp_path / "config.json")
    with (tmp_path / "config.json").open("wb") as file:
        file.write(b"[" + b" " * (MAX_JSON_BYTES - 2) + b"]")
    assert read_any_json(tmp_path / "config.json") == []
