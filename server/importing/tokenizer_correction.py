"""`tokenizer.json` made to do what the folder's other files say of it.

transformers 4 let those settings decide when it loaded a tokenizer; transformers 5 leaves some of
them unread (`add_bos_token`, `add_eos_token`), so that a model computes other vectors than its
publisher saw. Where they differ from what the tokenizer does, it is corrected, or the folder refused.
What a tokenizer does is found by tokenising. Pure functions but for the tokenizer that is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel

from server.catalog.card import TOKENIZER_FILE, PoolingMode
from server.errors import ImportRefused
from server.importing.folder import TOKENIZER_CONFIG_FILE
from server.importing.text_ends import check_ends, follow_end_settings
from server.importing.tokenizer_settings import (
    BARE_CLASSES,
    BERT_CLASSES,
    BYTE_LEVEL_CLASSES,
    TokenizerSettings,
)
from server.inference.tensor_account import listed

# Upper case, an accent and Chinese: all that BERT's settings decide. Compared as normalised.
_PROBES = ("Ärger", "中文")
_MAX_NAMED = 10  # tokens that a line names
_SWITCHES = ("lstrip", "rstrip", "single_word")  # of AddedToken: what it takes of its surroundings


def correct(
    tokenizer: RustTokenizer,
    settings: TokenizerSettings,
    pooling: PoolingMode,
    report: Callable[[str], None],
) -> bool:
    """Change the tokenizer in place; each change is told, and so is what stays a question.

    Returns:
        Whether anything was changed.

    Raises:
        ImportRefused: the settings and the tokenizer contradict each other.
    """
    if (tokenizer.truncation or {}).get("direction", "right").lower() != "right":
        raise ImportRefused(
            f"{settings.path / TOKENIZER_FILE}: truncation is from the left, and here texts that "
            "are too long lose their end; set its direction to Right if that will do"
        )
    done = [
        *_add_tokens(tokenizer, settings),
        *_follow_case_settings(tokenizer, settings, report),
        *_follow_prefix_space(tokenizer, settings),
        *follow_end_settings(tokenizer, settings),
    ]
    for line in done:
        report(line)
    if settings.chat_template:
        report("the tokenizer's chat template is not used: a text is read as it is")
    check_ends(tokenizer, settings, pooling, report)
    return bool(done)


def _add_tokens(tokenizer: RustTokenizer, settings: TokenizerSettings) -> list[str]:
    """Tokens that are found in a text before it is split, by the folder's other files.

    tokenizer.json may lack them, have them for words of the vocabulary alone, or find them in
    another way.
    """
    there = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    listed = [(number, _added_token(fields)) for number, fields in sorted(settings.added.items())]
    changed = [
        token
        for number, token in listed
        if not _is_found_as(there.get(token.content), token, settings.added[number])
    ]
    tokenizer.add_tokens(changed)  # at once: each call looks at all tokens
    lacking = [token.content for token in changed if token.content not in there]
    found_otherwise = [token.content for token in changed if token.content in there]
    for number, token in listed:
        known = tokenizer.token_to_id(token.content)
        if known != number:
            would = "would be " if token.content in lacking else ""
            raise ImportRefused(
                f"{settings.path}: the token {token.content!r} is {number} in "
                f"{TOKENIZER_CONFIG_FILE} or added_tokens.json, but {would}{known} in "
                f"{TOKENIZER_FILE}"
            )
    known_now = there.keys() | {token.content for _, token in listed}
    # One that the vocabulary lacks would get a number for which the weights have no vector.
    more = [
        token
        for token in settings.special_tokens
        if token not in known_now and tokenizer.token_to_id(token) is not None
    ]
    tokenizer.add_special_tokens(more)
    lacking += more
    lines = []
    if lacking:
        lines.append(
            f"{TOKENIZER_FILE} lacks tokens that were added to the tokenizer; added: "
            f"{_name(lacking)}"
        )
    if found_otherwise:
        lines.append(
            f"{TOKENIZER_FILE} finds added tokens otherwise than {TOKENIZER_CONFIG_FILE} says; "
            f"corrected: {_name(found_otherwise)}"
        )
    return lines


def _added_token(fields: Mapping[str, Any]) -> AddedToken:
    special = bool(fields.get("special"))
    return AddedToken(
        str(fields["content"]),
        special=special,
        normalized=bool(fields.get("normalized", not special)),
        **{name: bool(fields.get(name)) for name in _SWITCHES},
    )


def _is_found_as(there: AddedToken | None, wanted: AddedToken, fields: Mapping[str, Any]) -> bool:
    """Whether a token is added already, and does what its fields say; unsaid ones say nothing."""
    names = [name for name in (*_SWITCHES, "normalized", "special") if name in fields]
    return there is not None and all(getattr(there, n) == getattr(wanted, n) for n in names)


def _name(tokens: Sequence[str]) -> str:
    return listed([repr(token) for token in tokens], _MAX_NAMED)


def _follow_case_settings(
    tokenizer: RustTokenizer, settings: TokenizerSettings, report: Callable[[str], None]
) -> list[str]:
    """`do_lower_case`, `strip_accents` and `tokenize_chinese_chars`, where the class reads them."""
    name = settings.tokenizer_class
    lower = settings.flag("do_lower_case")
    if name not in BERT_CLASSES or type(tokenizer.model).__name__ != "WordPiece":
        if lower is not None and lower != _lowers(tokenizer):
            report(
                f"{TOKENIZER_CONFIG_FILE}: do_lower_case = {str(lower).lower()} has no effect with "
                f"{name}; {TOKENIZER_FILE} {'keeps capitals' if lower else 'puts texts into lower case'}"
            )
        return []
    own = tokenizer.normalizer
    wanted = BertNormalizer(
        clean_text=own.clean_text if isinstance(own, BertNormalizer) else True,
        lowercase=lower is not False,
        strip_accents=settings.flag("strip_accents"),
        handle_chinese_chars=settings.flag("tokenize_chinese_chars") is not False,
    )
    differing, instead = [], []
    for probe in _PROBES:
        does = own.normalize_str(probe) if own else probe
        should = wanted.normalize_str(probe)
        if does != should:
            differing.append(f"{does!r} of {probe!r}")
            instead.append(repr(should))
    if not differing:
        return []
    what = (
        f"{TOKENIZER_FILE} makes {' and '.join(differing)}, but {name} by {TOKENIZER_CONFIG_FILE} "
        f"makes {' and '.join(instead)}"
    )
    if not isinstance(own, BertNormalizer) or not _all_said(own, wanted, settings):
        raise ImportRefused(
            f"{settings.path}: {what}; say in do_lower_case, strip_accents and tokenize_chinese_chars "
            f"of {TOKENIZER_CONFIG_FILE} how the model was trained"
        )
    tokenizer.normalizer = wanted
    return [f"{what}; corrected to what the settings say"]


def _all_said(own: BertNormalizer, wanted: BertNormalizer, settings: TokenizerSettings) -> bool:
    """Whether the folder itself sets all that differs, and not transformers' defaults."""
    case = "do_lower_case" in settings.values
    return (
        (own.lowercase == wanted.lowercase or case)
        # Left out it means: as `do_lower_case`.
        and (
            own.strip_accents == wanted.strip_accents or case or "strip_accents" in settings.values
        )
        and (
            own.handle_chinese_chars == wanted.handle_chinese_chars
            or "tokenize_chinese_chars" in settings.values
        )
    )


def _lowers(tokenizer: RustTokenizer) -> bool:
    own = tokenizer.normalizer
    return own is not None and own.normalize_str("ABC") == "abc"


def _follow_prefix_space(tokenizer: RustTokenizer, settings: TokenizerSettings) -> list[str]:
    """`add_prefix_space`: whether a text begins as if a blank were before it."""
    name = settings.tokenizer_class
    said = settings.flag("add_prefix_space")
    pre_tokenizer = tokenizer.pre_tokenizer
    direct = isinstance(pre_tokenizer, ByteLevel)
    wanted = False if said is None and name in BYTE_LEVEL_CLASSES and direct else said
    if wanted is None or (name in BARE_CLASSES and not direct):
        return []
    does = pre_tokenizer.add_prefix_space if direct else _begins_behind_blank(tokenizer)
    if does == wanted:
        return []
    what = f"{TOKENIZER_FILE} begins a text {'as' if does else 'not as'} behind a blank"
    if not direct or said is None:
        raise ImportRefused(
            f"{settings.path}: {what}, {name} with add_prefix_space = {str(wanted).lower()} "
            f"otherwise; say in add_prefix_space of {TOKENIZER_CONFIG_FILE} how the model was trained"
        )
    pre_tokenizer.add_prefix_space = wanted
    tokenizer.pre_tokenizer = pre_tokenizer
    return [
        f"{what}; corrected to add_prefix_space = {str(wanted).lower()} of {TOKENIZER_CONFIG_FILE}"
    ]


def _begins_behind_blank(tokenizer: RustTokenizer) -> bool:
    """Whether a word has the same token at a text's beginning as behind a blank."""
    begun, behind = (tokenizer.encode(text, add_special_tokens=False) for text in ("a", " a"))
    # Llama's normaliser puts one before a blank as well.
    return begun.ids == behind.ids or (begun.tokens[:1] != [] and begun.tokens[0].startswith("▁"))
