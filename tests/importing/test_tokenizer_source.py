"""A folder without tokenizer.json is told what it has instead, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing import packages
from server.importing.tokenizer_source import check_source

SAVE = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([], f"no tokenizer.json; make one with transformers: {SAVE}"),
        (["vocab.json"], f"no tokenizer.json; make one with transformers: {SAVE}"),
        (
            ["spiece.model"],
            "no tokenizer.json, only spiece.model; make one with transformers and sentencepiece: "
            + SAVE,
        ),
        (["sentencepiece.bpe.model"], "no tokenizer.json, only sentencepiece.bpe.model; make one"),
        (["vocab.txt"], "only vocab.txt, and making one needs transformers: "),
        (["vocab.json", "merges.txt"], "only vocab.json, and making one needs transformers: "),
    ],
)
def test_what_no_tokenizer_can_be_had_from_without_torch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], said: str
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: False)
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(ImportRefused) as refused:
        check_source(tmp_path)
    assert refused.value.message.startswith(f"{tmp_path}: ")
    assert said in refused.value.message


@pytest.mark.parametrize("there", [["vocab.txt"], ["vocab.json", "merges.txt"]])
def test_older_files_will_do_where_transformers_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str]
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: package == "transformers")
    for name in there:
        (tmp_path / name).touch()
    check_source(tmp_path)


def test_a_tokenizer_json_needs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: False)
    (tmp_path / "tokenizer.json").touch()
    check_source(tmp_path)
