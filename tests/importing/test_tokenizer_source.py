"""A folder without tokenizer.json is told what it has instead, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing import packages
from server.importing.tokenizer_source import check_numbers, check_source
from tests.importing.tokenizers import WORDS, word_pieces

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


@pytest.mark.parametrize("older", ["vocab.txt", "vocab.json"])
def test_a_word_with_another_number_than_in_the_older_file_is_refused(
    tmp_path: Path, older: str
) -> None:
    """Of another model's files one is often copied over: weights and table then fit all the same."""
    tokenizer = word_pieces()
    numbers = {word: number for number, word in enumerate(WORDS)}
    numbers["older"] = len(WORDS)  # only one of them has it, which decides nothing

    def write(numbers: dict[str, int]) -> None:
        words = dict(sorted(numbers.items(), key=lambda word: word[1]))
        text = json.dumps(words) if older == "vocab.json" else "\n".join(words) + "\n"
        (tmp_path / older).write_text(text, encoding="utf-8")

    (tmp_path / "merges.txt").touch()
    write(numbers)
    check_numbers(tmp_path, tokenizer)
    write(numbers | {"arger": 5, "ärger": 7})
    with pytest.raises(ImportRefused) as refused:
        check_numbers(tmp_path, tokenizer)
    assert refused.value.message.startswith(f"{tmp_path / older}: 'arger' is 5 ")
    assert "there, but 7 in tokenizer.json; get the publisher's files" in refused.value.message


def test_words_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(ImportRefused, match=r"vocab\.txt: 'utf-8' codec"):
        check_numbers(tmp_path, word_pieces())
