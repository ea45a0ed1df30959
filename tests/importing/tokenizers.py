"""Small tokenizers of every kind, made by hand: the id of each token can be counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from server.catalog.card import TOKENIZER_FILE
from server.importing.tokenizer_settings import TokenizerSettings, read_settings

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "ärger",
    "Ärger",
    "arger",
    "Arger",
    "中",
    "中文",
]
LETTERS = ["<s>", "</s>", "<|end|>", "a", "b", "Ġ", "Ġa"]


def word_pieces(**normalizer: Any) -> Tokenizer:
    """As a publisher's of BERT: [CLS] is 2, [SEP] 3, and the words follow from 5 on."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.post_processor = around(["[CLS]"], ["[SEP]"], tokenizer)
    return tokenizer


def byte_pairs(*, add_prefix_space: bool = False) -> Tokenizer:
    """As a decoder's, with nothing around a text: `a` is 3, `b` 4, and ` a` 6."""
    vocabulary = {letter: number for number, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.add_special_tokens(LETTERS[:3])
    return tokenizer


def around(before: list[str], behind: list[str], tokenizer: Tokenizer) -> Any:
    """What puts these tokens around a text."""
    numbers = [(token, tokenizer.token_to_id(token)) for token in {*before, *behind}]
    return processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", "$B:1", *behind],
        special_tokens=numbers,
    )


def settings_of(
    path: Path, architecture: str = "bert", other: dict[str, Any] | None = None, **own: Any
) -> TokenizerSettings:
    """What a folder says with these keys in `tokenizer_config.json`.

    Args:
        other: contents of other files, by name.
    """
    path.mkdir(exist_ok=True)
    for name, content in {"tokenizer_config.json": own, **(other or {})}.items():
        (path / name).write_text(json.dumps(content))
    return read_settings(path, {"model_type": architecture})


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """As a folder's own."""
    path.mkdir(exist_ok=True)
    tokenizer.save(str(path / TOKENIZER_FILE))
