"""A tokenizer made of the older files has the numbers that these files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer

from server.errors import ImportRefused
from server.importing.torch_tokenizer import make_tokenizer
from tests.importing.tokenizers import LETTERS, WORDS, settings_of


def ignore(line: str) -> None:
    pass


def settings_with(path: Path, files: dict[str, str], architecture: str, **own: Any) -> Any:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_text(content, encoding="utf-8")
    (path / "config.json").write_text(json.dumps({"model_type": architecture}))
    return settings_of(path, architecture, **own)


@pytest.mark.parametrize(
    ("own", "ids"), [({}, [2, 7, 9, 1, 3]), ({"do_lower_case": False}, [2, 6, 9, 1, 3])]
)
def test_word_pieces_are_numbered_by_their_lines(
    tmp_path: Path, own: dict[str, Any], ids: list[int]
) -> None:
    lines: list[str] = []
    files = {"vocab.txt": "\n".join(WORDS) + "\n"}
    made = make_tokenizer(settings_with(tmp_path, files, "bert", **own), lines.append)
    assert made.encode("Ärger 中 none").ids == ids
    (line,) = lines
    assert line.startswith("no tokenizer.json: made of vocab.txt by BertTokenizer of transformers ")
    assert line.endswith(", 11 tokens")


def test_byte_pairs_are_numbered_by_their_file(tmp_path: Path) -> None:
    vocabulary = {letter: number for number, letter in enumerate([*LETTERS, "<pad>", "<unk>"])}
    files = {
        "vocab.json": json.dumps(vocabulary | {"<mask>": 9}),
        "merges.txt": "#version: 0.2\nĠ a\n",
    }
    made = make_tokenizer(settings_with(tmp_path, files, "roberta"), ignore)
    assert made.encode("ab a").ids == [0, 3, 4, 6, 1]


def test_another_number_than_the_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BertTokenizer.__init__

    def shifted(self: Any, vocab: Any = None, **rest: Any) -> None:
        real(self, vocab={word: (n + 1) % len(WORDS) for n, word in enumerate(WORDS)}, **rest)

    monkeypatch.setattr(BertTokenizer, "__init__", shifted)
    settings = settings_with(tmp_path, {"vocab.txt": "\n".join(WORDS)}, "bert")
    with pytest.raises(ImportRefused, match=r"'\[PAD\]' is 0 there, but 1 in the tokenizer that"):
        make_tokenizer(settings, ignore)


def test_whatever_transformers_fails_with_is_one_line(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, {"vocab.json": "{", "merges.txt": ""}, "roberta")
    with pytest.raises(ImportRefused, match=r"vocab\.json: transformers cannot make a tokenizer"):
        make_tokenizer(settings, ignore)
