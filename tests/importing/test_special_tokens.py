"""What is shown of a tokenizer, and which tokens the weights must hold."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import ImportRefused
from server.importing.special_tokens import check_embeddings, show_tokens
from server.inference.loader import Encoder
from server.inference.tokenizer import Tokenizer
from tests.importing.tokenizers import WORDS, around, byte_pairs, word_pieces, write_tokenizer


def opened(path: Path, tokenizer: Any, *, max_input_tokens: int = 16) -> Tokenizer:
    write_tokenizer(path, tokenizer)
    return Tokenizer(path / "tokenizer.json", max_input_tokens)


def at_work(tokenizer: Tokenizer, known: int) -> Any:
    """An encoder whose weights hold so many vectors."""
    backend = SimpleNamespace(count_embeddings=lambda size: min(size, known))
    return SimpleNamespace(tokenizer=tokenizer, backends=(backend,))


def folder(path: Path, pad_token: str | None = None, **config: Any) -> Any:
    (path / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad_token}))
    return SimpleNamespace(path=path, transformer_path=path, config={"model_type": "bert"} | config)


def test_three_known_texts_are_shown_as_the_model_reads_them(encoder: Encoder) -> None:
    lines: list[str] = []
    show_tokens(encoder.tokenizer, lines.append)
    assert lines == [
        'tokens of "Hello, world": [CLS] hello , world [SEP]',
        "tokens of an empty text: [CLS] [SEP]",
        "tokens of a text cut to 256: [CLS] word ##0 … ##7 word [SEP]",
    ]


def test_a_tokenizer_that_puts_nothing_around_a_text_is_shown_as_such(tmp_path: Path) -> None:
    lines: list[str] = []
    show_tokens(opened(tmp_path, byte_pairs()), lines.append)
    assert "tokens of an empty text: none" in lines


def test_tokens_beyond_the_table_are_named_up_to_ten(tmp_path: Path) -> None:
    tokenizer = word_pieces()
    tokenizer.add_tokens([f"[NEW{number}]" for number in range(12)])
    lines: list[str] = []
    size = len(WORDS)
    check_embeddings(folder(tmp_path), at_work(opened(tmp_path, tokenizer), size), lines.append)
    (line,) = lines
    assert line.startswith("warning: the tokenizer knows tokens that the weights do not")
    assert f"refused: '[NEW0]' ({size}), '[NEW1]' ({size + 1}), " in line
    assert line.endswith(f"'[NEW9]' ({size + 9}) and 2 more")


def test_a_table_larger_than_the_tokenizer_is_nothing_to_tell(tmp_path: Path) -> None:
    lines: list[str] = []
    encoder = at_work(opened(tmp_path, word_pieces()), 30_522)
    check_embeddings(folder(tmp_path), encoder, lines.append)
    assert lines == []


def test_a_gap_between_the_tokenizers_numbers_is_no_token(tmp_path: Path) -> None:
    """ModernBERT's added tokens lie above unused numbers, and its table holds both."""
    tokenizer = word_pieces()
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"]["[FAR]"] = 1_000_000
    tokenizer = type(tokenizer).from_str(json.dumps(content))
    tokenizer.add_special_tokens(["[FAR]"])
    lines: list[str] = []
    check_embeddings(folder(tmp_path), at_work(opened(tmp_path, tokenizer), 20), lines.append)
    (line,) = lines
    assert line.endswith(": '[FAR]' (1000000)")


@pytest.mark.parametrize(
    ("before", "behind", "named"),
    [(["[NEW]"], ["[SEP]"], "'[NEW]' (11)"), (["[CLS]"], ["[OTHER]"], "'[OTHER]' (12)")],
)
def test_a_token_around_every_text_that_the_table_lacks_refuses_the_import(
    tmp_path: Path, before: list[str], behind: list[str], named: str
) -> None:
    tokenizer = word_pieces()
    tokenizer.add_special_tokens(["[NEW]", "[OTHER]"])
    tokenizer.post_processor = around(before, behind, tokenizer)
    encoder = at_work(opened(tmp_path, tokenizer), len(WORDS))
    with pytest.raises(ImportRefused) as refused:
        check_embeddings(folder(tmp_path), encoder, lambda line: None)
    assert refused.value.message == (
        f"{tmp_path}: the weights hold vectors for 11 tokens, and the tokenizer needs more for "
        f"every text or batch: {named}; it is not the tokenizer of these weights"
    )


@pytest.mark.parametrize("said", [{"pad_token": "[NEW]"}, {"pad_token_id": 11}])
def test_a_padding_token_that_the_table_lacks_refuses_the_import(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    tokenizer = word_pieces()
    tokenizer.add_special_tokens(["[NEW]"])
    encoder = at_work(opened(tmp_path, tokenizer), len(WORDS))
    with pytest.raises(ImportRefused, match=r"for every text or batch: '\[NEW\]' \(11\); it is"):
        check_embeddings(folder(tmp_path, **said), encoder, lambda line: None)
