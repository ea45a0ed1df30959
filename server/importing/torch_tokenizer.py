"""A tokenizer.json for a folder that has only the older files of a vocabulary.

Needs the `[torch]` extra. Runs no code of the folder. Any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable

import transformers
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer

from server.errors import ImportRefused
from server.importing.refusing import refusing
from server.importing.tokenizer_settings import TokenizerSettings
from server.importing.tokenizer_source import read_numbers, vocabulary_file


def make_tokenizer(settings: TokenizerSettings, report: Callable[[str], None]) -> RustTokenizer:
    """As transformers makes it of `vocab.txt`, or of `vocab.json` and `merges.txt`.

    Raises:
        ImportRefused: it cannot, or what it made gives a word of the vocabulary another number.
    """
    path = settings.path
    file = vocabulary_file(path)
    assert file is not None  # else the folder was refused when it was read
    with refusing(f"{path / file}: transformers cannot make a tokenizer of it"):
        made = AutoTokenizer.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
        tokenizer: RustTokenizer = made.backend_tokenizer
    for token, number in read_numbers(path / file).items():
        if tokenizer.token_to_id(token) != number:
            raise ImportRefused(
                f"{path / file}: {token!r} is {number} there, but {tokenizer.token_to_id(token)} in "
                f"the tokenizer that {type(made).__name__} makes of it"
            )
    report(
        f"no tokenizer.json: made of {file} by {type(made).__name__} of transformers "
        f"{transformers.__version__}, {tokenizer.get_vocab_size():,} tokens"
    )
    return tokenizer
