"""How many tokens a text may have: by a person, else by the folder, within the model's positions.

Pure; any thread may call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import ImportRefused
from server.importing.told import Told

FLAG = "--max-input-tokens"
# Where configurations keep how many tokens there are positions for.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
# Their tables begin with rows that no token of a text has: a text's first token has the position
# behind the padding's id. So fairseq made them; of 514 rows 512 are for tokens.
FAIRSEQ_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta"}
    | {"roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
_MOST = 10_000_000  # tokenizers without a limit say 10^30


@dataclass(frozen=True, slots=True)
class Said:
    """What a file says of the longest text; `file` is its name in the model's folder."""

    tokens: object
    file: str


@dataclass(frozen=True, slots=True)
class InputLength:
    """Tokens of the longest text, and who says so."""

    tokens: int
    told: Told
    is_own: bool  # sentence-transformers cuts there, too


@dataclass(frozen=True, slots=True)
class Positions:
    """How many tokens a model has positions for, and the rows of its table before those."""

    tokens: int
    before: int


def choose_length(
    where: str,
    positions: Positions | None,
    wished: int | None,
    *,
    sentence_bert: Said,
    tokenizer: Said,
    config_file: str,
) -> InputLength:
    """Where texts are cut: by the wish, else as sentence-transformers does, within the positions.

    Args:
        where: the folder, for errors.
        positions: see `count_positions`; `config_file` tells them.

    Raises:
        ImportRefused: nobody says it, or there are not so many positions.
    """
    own = _own_length(positions, sentence_bert, tokenizer, config_file)
    if wished is not None:
        _check_wish(wished, positions, own)
        return InputLength(wished, _tell(wished, FLAG), own is not None and wished == own[0])
    if own is None:
        raise ImportRefused(
            f"{where}: says nowhere how many tokens a text may have; {FLAG} says it"
        )
    tokens, file = own
    if positions is not None and positions.before and tokens > positions.tokens:
        rows = positions.tokens + positions.before
        source = (
            f"{config_file}; {file} says {tokens:,}, but the first {positions.before} of "
            f"{rows:,} positions are not for tokens"
        )
        return InputLength(positions.tokens, _tell(positions.tokens, source), is_own=False)
    # Where only the table tells, sentence-transformers takes all of its rows.
    is_own = file != config_file or positions is None or not positions.before
    return InputLength(tokens, _tell(tokens, file), is_own)


def count_positions(config: Mapping[str, Any]) -> Positions | None:
    """What transformers' config.json says of them; None if it says nothing."""
    rows = next((config[key] for key in POSITIONS if key in config), None)
    if isinstance(rows, bool) or not isinstance(rows, int):
        return None
    if config.get("model_type") not in FAIRSEQ_POSITIONS:
        return Positions(rows, 0)
    padding = config.get("pad_token_id", 1)
    if config.get("model_type") == "mpnet" or not isinstance(padding, int):  # its class has 1
        padding = 1
    return Positions(rows - padding - 1, padding + 1)


def _own_length(
    positions: Positions | None, sentence_bert: Said, tokenizer: Said, config_file: str
) -> tuple[int, str] | None:
    """Where sentence-transformers cuts: its own setting, else the tokenizer's within positions.

    Returns:
        The number of tokens and the file that says it; None if no file does.
    """
    said = [sentence_bert]
    if sentence_bert.tokens is None:
        said = [tokenizer, Said(positions and positions.tokens, config_file)]
    found = [(one.tokens, one.file) for one in said if isinstance(one.tokens, int | float)]
    tokens, file = min(found, default=(0, ""))
    if isinstance(tokens, bool) or not 1 <= tokens < _MOST:
        return None
    return int(tokens), file


def _check_wish(wished: int, positions: Positions | None, own: tuple[int, str] | None) -> None:
    """Positions that are computed may go beyond what the config counts, where the folder goes."""
    most = [positions.tokens] if positions else []
    if own is not None and not (positions and positions.before):
        most.append(own[0])
    if most and wished > max(most):
        raise ImportRefused(f"{FLAG} {wished:,}: the model has positions for {max(most):,} tokens")


def _tell(tokens: int, source: str) -> Told:
    return Told("longest input", f"{tokens:,} tokens", source)
