"""`tokenizer.json` made to do what the folder's other files say of it.

transformers 4 let those settings decide when it loaded a tokenizer; transformers 5 leaves some of
them unread (`add_bos_token`, `add_eos_token`), so that a model computes other vectors than its
publisher saw. Where they differ from what the tokenizer does, it is corrected, or the folder refused.
What a tokenizer does is found by tokenising. Pure functions but for the tokenizer that is changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from server.catalog.card import TOKENIZER_FILE, PoolingMode
from server.errors import ImportRefused
from server.importing.folder import TOKENIZER_CONFIG_FILE
from server.importing.tokenizer_settings import (
    BARE_CLASSES,
    BERT_CLASSES,
    BYTE_LEVEL_CLASSES,
    TokenizerSettings,
)
from server.inference.tokenizer import tokens_around

# Upper case, an accent and Chinese: all that BERT's settings decide. Compared as normalised.
_PROBES = ("Ärger", "中文")
# What these classes put around a text: the names of the settings, and their defaults.
_CLS_SEP = (("cls_token", "[CLS]"), ("sep_token", "[SEP]"))
_BOS_EOS = (("cls_token", "<s>"), ("sep_token", "</s>"))
_AROUND = {
    **dict.fromkeys(BERT_CLASSES, _CLS_SEP),
    **dict.fromkeys(("AlbertTokenizer", "DebertaTokenizer", "DebertaV2Tokenizer"), _CLS_SEP),
    **dict.fromkeys(("MPNetTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"), _BOS_EOS),
    **dict.fromkeys(("BartTokenizer", "CamembertTokenizer", "LongformerTokenizer"), _BOS_EOS),
    **dict.fromkeys(("T5Tokenizer", "MT5Tokenizer"), (("eos_token", "</s>"),)),
}
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
    tokenizer.no_padding()  # else these are around a text; serving leaves both out as well
    tokenizer.no_truncation()
    done = [
        *_add_tokens(tokenizer, settings),
        *_follow_case_settings(tokenizer, settings, report),
        *_follow_prefix_space(tokenizer, settings),
        *_follow_end_settings(tokenizer, settings),
    ]
    for line in done:
        report(line)
    _check_around(tokenizer, settings, pooling, report)
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
            raise ImportRefused(
                f"{settings.path}: the token {token!r} is {number} in {TOKENIZER_CONFIG_FILE} or "
                f"added_tokens.json, but {known} in {TOKENIZER_FILE}"
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
                f"{TOKENIZER_CONFIG_FILE}: do_lower_case = {str(lower).lower()} has no effect with {name}; "
                f"{TOKENIZER_FILE} {'keeps capitals' if lower else 'puts texts into lower case'}"
            )
        return []
    wanted = {
        "lowercase": True if lower is None else lower,
        "strip_accents": settings.flag("strip_accents"),
        "handle_chinese_chars": settings.flag("tokenize_chinese_chars") is not False,
    }
    expected = BertNormalizer(**wanted)
    own = tokenizer.normalizer
    wants = [expected.normalize_str(probe) for probe in _PROBES]
    does = [own.normalize_str(probe) if own else probe for probe in _PROBES]
    if does == wants:
        return []
    what = f"{TOKENIZER_FILE} makes {does[0]!r} of {_PROBES[0]!r} and {does[1]!r} of {_PROBES[1]!r}"
    what += f", {name} with the settings of {TOKENIZER_CONFIG_FILE} {wants[0]!r} and {wants[1]!r}"
    if not isinstance(own, BertNormalizer) or not _all_said(own, wanted, settings):
        raise ImportRefused(
            f"{settings.path}: {what}; say there in do_lower_case, strip_accents and "
            "tokenize_chinese_chars how the model was trained"
        )
    own.lowercase = wanted["lowercase"]
    own.strip_accents = wanted["strip_accents"]
    own.handle_chinese_chars = wanted["handle_chinese_chars"]
    tokenizer.normalizer = own
    return [f"{what}; corrected to what the settings say"]


def _all_said(
    own: BertNormalizer, wanted: dict[str, bool | None], settings: TokenizerSettings
) -> bool:
    """Whether the folder itself sets all that differs, and not transformers' defaults."""
    said = {
        "lowercase": "do_lower_case" in settings.values,
        # Left out it means: as `do_lower_case`.
        "strip_accents": {"strip_accents", "do_lower_case"} & settings.values.keys(),
        "handle_chinese_chars": "tokenize_chinese_chars" in settings.values,
    }
    return all(said[key] for key, value in wanted.items() if getattr(own, key) != value)


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
    bare = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", " a")]
    does = pre_tokenizer.add_prefix_space if direct else bare[0] == bare[1]
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
    return [f"{what}; corrected to add_prefix_space = {str(wanted).lower()} of {TOKENIZER_CONFIG_FILE}"]


def _follow_end_settings(tokenizer: RustTokenizer, settings: TokenizerSettings) -> list[str]:
    """`add_bos_token` and `add_eos_token`: a token in front of each text, and one behind it."""
    around = tokens_around(tokenizer)
    if around is None:
        return []  # and the tokenizer is refused when it is opened
    before, behind = (list(map(tokenizer.id_to_token, ids)) for ids in around)
    bos = _lacking(settings, "bos_token", before[:1], before)
    eos = _lacking(settings, "eos_token", behind[-1:], behind)
    if not bos and not eos:
        return []
    before, behind = [*bos, *before], [*behind, *eos]
    for token in (*bos, *eos):
        if tokenizer.token_to_id(token) is None:
            raise ImportRefused(f"{settings.path / TOKENIZER_FILE}: has no token {token!r}")
    tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", "$B:1", *behind],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *behind}],
    )
    lines = [f"add_bos_token = true puts {token!r} in front of each text" for token in bos]
    lines += [f"add_eos_token = true puts {token!r} behind each text" for token in eos]
    return [f"{line}, which {TOKENIZER_FILE} does not: corrected" for line in lines]


def _lacking(
    settings: TokenizerSettings, name: str, there: list[str], side: list[str]
) -> list[str]:
    """The token that the tokenizer must add on one side to do what `add_...` says; none or one.

    Args:
        there: the token that is outermost on that side; empty without one.
        side: all tokens on that side.
    """
    switch = f"add_{name}"
    wanted = settings.flag(switch)
    token = settings.token(name)
    if wanted is None:
        return []
    file = settings.path / TOKENIZER_CONFIG_FILE
    if not wanted:
        # DeBERTa's bos_token is its cls_token, which is always there.
        others = {settings.token("cls_token"), settings.token("sep_token")}
        if token in side and token not in others:
            raise ImportRefused(
                f"{file}: {switch} is false, but {TOKENIZER_FILE} puts {token!r} around each text; "
                "set it to what the model was trained with"
            )
        return []
    if token is None:
        raise ImportRefused(f"{file}: {switch} is true, but there is no {name}")
    if there == [token]:
        return []
    if there:
        raise ImportRefused(
            f"{file}: {switch} is true and {name} is {token!r}, but {TOKENIZER_FILE} puts "
            f"{there[0]!r} there; set {name} or {switch} to what the model was trained with"
        )
    return [token]


def _check_around(
    tokenizer: RustTokenizer,
    settings: TokenizerSettings,
    pooling: PoolingMode,
    report: Callable[[str], None],
) -> None:
    """The tokens that must be around a text by its class; what no file decides is told."""
    around = tokens_around(tokenizer)
    if around is None:
        return
    before, behind = (list(map(tokenizer.id_to_token, ids)) for ids in around)
    there = {*before, *behind}
    bare = settings.tokenizer_class in BARE_CLASSES
    needs = _AROUND.get(settings.tokenizer_class, _CLS_SEP if bare else ())
    for name, default in needs:
        token = settings.token(name) or ("" if bare else default)
        if not token or token in there or (pooling == "last_token" and bare):
            continue
        if not bare:
            raise ImportRefused(
                f"{settings.path / TOKENIZER_FILE}: puts no {token!r} around a text, as "
                f"{settings.tokenizer_class} does; save it again with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        report(f"warning: {TOKENIZER_FILE} does not put its {name} {token!r} around a text")
    if pooling == "last_token" and not behind:
        report(
            f"warning: a text's vector is that of its last token, and {TOKENIZER_FILE} puts no end "
            f"token behind a text; if the model was trained with one, set add_eos_token = true in "
            f"{TOKENIZER_CONFIG_FILE}"
        )
