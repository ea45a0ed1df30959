"""`tokenizer.json` made to do what the folder's other files say of it.

transformers 4 let those settings decide when it loaded a tokenizer; transformers 5 leaves some of
them unread (`add_bos_token`, `add_eos_token`), so that a model computes other vectors than its
publisher saw. Where they differ from what the tokenizer does, it is corrected, or the folder refused.
What a tokenizer does is found by tokenising. Pure functions but for the tokenizer that is changed.
"""

from __future__ import annotations

from collections.abc import Callable

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

# Upper case, an accent and Chinese: all that BERT's settings decide. Compared as normalised.
_PROBES = ("Ärger", "中文")
_MAX_NAMED = 10  # tokens that a line names


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
    """Tokens of `added_tokens.json` and its successor that tokenizer.json lacks."""
    lacking = []
    for number, fields in sorted(settings.added.items()):
        token = str(fields["content"])
        known = tokenizer.token_to_id(token)
        if known is None:
            special = bool(fields.get("special"))
            switches = {
                name: bool(fields.get(name)) for name in ("lstrip", "rstrip", "single_word")
            }
            normalized = bool(fields.get("normalized", not special))
            added = AddedToken(token, special=special, normalized=normalized, **switches)
            tokenizer.add_tokens([added])
            lacking.append(token)
            known = tokenizer.token_to_id(token)
        if known != number:
            would = "would be " if token in lacking else ""
            raise ImportRefused(
                f"{settings.path}: the token {token!r} is {number} in {TOKENIZER_CONFIG_FILE} or "
                f"added_tokens.json, but {would}{known} in {TOKENIZER_FILE}"
            )
    if not lacking:
        return []
    more = f" and {len(lacking) - _MAX_NAMED} more" if len(lacking) > _MAX_NAMED else ""
    named = ", ".join(map(repr, lacking[:_MAX_NAMED]))
    return [f"{TOKENIZER_FILE} lacks tokens that were added to the tokenizer; added: {named}{more}"]


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
    differing = []
    for probe in _PROBES:
        does = own.normalize_str(probe) if own else probe
        should = wanted.normalize_str(probe)
        if does != should:
            differing.append(f"{does!r} of {probe!r}, not {should!r}")
    if not differing:
        return []
    what = (
        f"{TOKENIZER_FILE} makes {' and '.join(differing)} as {name} with the settings of "
        f"{TOKENIZER_CONFIG_FILE}"
    )
    if not isinstance(own, BertNormalizer) or not _all_said(own, wanted, settings):
        raise ImportRefused(
            f"{settings.path}: {what}; say there in do_lower_case, strip_accents and "
            "tokenize_chinese_chars how the model was trained"
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
