"""The special tokens of a model at work: what is put around a text, and what the weights lack.

Any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable

from server.errors import ImportRefused
from server.importing.folder import ModelFolder
from server.importing.proof_texts import LONGEST_TEXT
from server.importing.tokenizer_settings import read_settings
from server.importing.told import quoted
from server.inference import direct
from server.inference.loader import Encoder
from server.inference.tensor_account import listed
from server.inference.tokenizer import Tokenizer

_SHOWN_TEXT = "Hello, world"
_MAX_NAMED = 10  # tokens that a line names
_SHOWN_ENDS = 3  # tokens of a long text's beginning and end


def show_tokens(tokenizer: Tokenizer, report: Callable[[str], None]) -> None:
    """Three known texts as the model reads them, for a person to hold against the model's card."""
    shown, empty, longest = (
        [tokenizer.token(number) for number in token_ids.tolist()]
        for token_ids in direct.tokenize(tokenizer, [_SHOWN_TEXT, "", LONGEST_TEXT])
    )
    report(f"tokens of {quoted(_SHOWN_TEXT)}: {' '.join(shown)}")
    report(f"tokens of an empty text: {' '.join(empty) or 'none'}")
    ends = " ".join([*longest[:_SHOWN_ENDS], "…", *longest[-_SHOWN_ENDS:]])
    report(f"tokens of a text cut to {len(longest):,}: {ends}")


def check_embeddings(folder: ModelFolder, encoder: Encoder, report: Callable[[str], None]) -> None:
    """Compare the tokenizer with the weights, which may hold fewer tokens than it knows.

    A text with such a token is refused when it is served, so it is told. More vectors than tokens
    are usual, and harmless.

    Raises:
        ImportRefused: such a token is around every text, or pads.
    """
    tokenizer = encoder.tokenizer
    known = encoder.backends[0].count_embeddings(tokenizer.vocabulary_size)
    unknown = tokenizer.tokens_from(known)
    if not unknown:
        return
    pad = read_settings(folder.transformer_path, folder.config).token("pad_token")
    around = [number for number in tokenizer.around_ids if number >= known]
    pads = folder.config.get("pad_token_id")
    padding = [number for number, token in unknown.items() if token == pad or number == pads]
    used = dict.fromkeys([*around, *padding])
    if used:
        named = _name({number: tokenizer.token(number) for number in used})
        raise ImportRefused(
            f"{folder.path}: the weights hold vectors for {known:,} tokens, and the tokenizer needs "
            f"more for every text or batch: {named}; it is not the tokenizer of these weights"
        )
    report(
        f"warning: the tokenizer knows tokens that the weights do not, and texts with one of them "
        f"will be refused: {_name(unknown)}"
    )


def _name(tokens: dict[int, str]) -> str:
    named = [f"{token!r} ({number})" for number, token in tokens.items()]
    return listed(named, _MAX_NAMED)
