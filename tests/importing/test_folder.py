from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing.folder import read_folder


def test_a_folder_that_is_not_there_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused) as refused:
        read_folder(tmp_path / "absent")
    assert refused.value.message == f"{tmp_path / 'absent'} does not exist"


def test_a_name_of_the_hub_gets_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportRefused, match=r"models pull intfloat/e5-base-v2$"):
        read_folder(Path("intfloat/e5-base-v2"))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ImportRefused, match=f"^{path} is not a folder$"):
        read_folder(path)
    with pytest.raises(ImportRefused, match=r"Not a directory$"):
        read_folder(path / "inner")


def test_a_folder_of_something_else_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        ImportRefused, match=r"no config\.json: not a folder of a transformer model"
    ):
        read_folder(tmp_path)
