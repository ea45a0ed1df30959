"""Which file of a folder its tokenizer comes from. Pure functions of files; any thread may call."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from server.catalog.card import TOKENIZER_FILE
from server.errors import ImportRefused
from server.importing import packages
from server.importing.json_files import read_json
from server.program.command_lines import install_command

WORD_PIECES = "vocab.txt"
BYTE_PAIRS = "vocab.json"
MERGES = "merges.txt"  # belongs to it
SENTENCE_PIECES = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "spm.model")
_SAVE = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


def check_source(path: Path) -> None:
    """Refuse a folder that no tokenizer can be had from.

    Raises:
        ImportRefused: says what there is, and what to do.
    """
    if (path / TOKENIZER_FILE).is_file():
        return
    found = vocabulary_file(path)
    if found is None:
        pieces = [name for name in SENTENCE_PIECES if (path / name).is_file()]
        there = f", only {pieces[0]}" if pieces else ""
        needs = " and sentencepiece" if pieces else ""
        raise ImportRefused(
            f"{path}: no {TOKENIZER_FILE}{there}; make one with transformers{needs}: {_SAVE}"
        )
    if not packages.is_installed("transformers"):
        raise ImportRefused(
            f"{path}: no {TOKENIZER_FILE}, only {found}, and making one needs transformers: "
            f"{install_command('torch')}"
        )


def vocabulary_file(path: Path) -> str | None:
    """The older file that a tokenizer can be made of; None if there is none."""
    if (path / WORD_PIECES).is_file():
        return WORD_PIECES
    return BYTE_PAIRS if all((path / name).is_file() for name in (BYTE_PAIRS, MERGES)) else None


def check_numbers(path: Path, tokenizer: RustTokenizer) -> None:
    """Refuse a tokenizer.json that gives a word another id than the older file beside it.

    Words that only one of them has decide nothing.

    Args:
        tokenizer: what was read of it.

    Raises:
        ImportRefused: they do not belong together; names the first word.
    """
    file = vocabulary_file(path)
    if file is None:
        return
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    for token, number in read_numbers(path / file).items():
        if numbers.get(token, number) != number:
            raise ImportRefused(
                f"{path / file}: {token!r} is {number} there, but {numbers[token]} in "
                f"{TOKENIZER_FILE}; get the publisher's files anew, or take the wrong one away"
            )


def read_numbers(file: Path) -> dict[str, int]:
    """The ids by the older file itself: a token's line, from 0 on, or its number.

    Raises:
        ImportRefused: it cannot be read.
    """
    if file.name != WORD_PIECES:
        return read_json(file)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ImportRefused(f"{file}: {error}") from None
    return {token: number for number, token in enumerate(lines) if token}
