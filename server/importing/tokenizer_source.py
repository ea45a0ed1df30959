"""Which file of a folder its tokenizer comes from. Pure functions of files; any thread may call."""

from __future__ import annotations

from pathlib import Path

from server.catalog.card import TOKENIZER_FILE
from server.errors import ImportRefused
from server.importing import packages
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
