"""The tokens around a text: those that a folder's settings ask for, and those its tokenizer puts.

A model that is pooled by the last token gives another vector where an end token is missing. What a
tokenizer does is found by tokenising. Any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.processors import TemplateProcessing

from server.catalog.card import TOKENIZER_FILE, PoolingMode
from server.errors import ImportRefused
from server.importing.folder import TOKENIZER_CONFIG_FILE
from server.importing.tokenizer_settings import BARE_CLASSES, BERT_CLASSES, TokenizerSettings
from server.inference.tokenizer import tokens_around

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
# transformers 4 puts `bos_token` before each text of theirs, unless `add_bos_token` is false.
_BEGIN_BY_DEFAULT = frozenset({"CodeLlamaTokenizer", "GemmaTokenizer", "LlamaTokenizer"})


def follow_end_settings(tokenizer: RustTokenizer, settings: TokenizerSettings) -> list[str]:
    """`add_bos_token` and `add_eos_token`: a token in front of each text, and one behind it.

    The file's own padding and cutting, which serving leaves out as well, are taken away.

    Returns:
        A line for each token that is put there from now on.

    Raises:
        ImportRefused: the settings and the tokenizer contradict each other.
    """
    tokenizer.no_padding()  # else it is around a text
    tokenizer.no_truncation()
    around = tokens_around(tokenizer)
    if around is None:
        return []  # and the tokenizer is refused when it is opened
    before, behind = (_tokens(tokenizer, ids) for ids in around)
    bos = _lacking(settings, "bos_token", before[:1], before)
    eos = _lacking(settings, "eos_token", behind[-1:], behind)
    if not bos and not eos:
        return []
    before, behind = [*bos, *before], [*behind, *eos]
    numbers = {token: tokenizer.token_to_id(token) for token in (*before, *behind)}
    for token, number in numbers.items():
        if number is None:
            raise ImportRefused(f"{settings.path / TOKENIZER_FILE}: has no token {token!r}")
    tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", "$B:1", *behind],
        special_tokens=[(token, number) for token, number in numbers.items() if number is not None],
    )
    lines = [f"add_bos_token = true puts {token!r} in front of each text" for token in bos]
    lines += [f"add_eos_token = true puts {token!r} behind each text" for token in eos]
    return [
        f"{line}, which {TOKENIZER_FILE} does not: corrected, for the comparison as well"
        for line in lines
    ]


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


def check_ends(
    tokenizer: RustTokenizer,
    settings: TokenizerSettings,
    pooling: PoolingMode,
    report: Callable[[str], None],
) -> None:
    """The tokens that must be around a text by its class; what no file decides is told.

    Raises:
        ImportRefused: one of them is missing.
    """
    around = tokens_around(tokenizer)
    if around is None:
        return
    before, behind = (_tokens(tokenizer, ids) for ids in around)
    there = {*before, *behind}
    name_of_class = settings.tokenizer_class
    bare = name_of_class in BARE_CLASSES
    needs = _AROUND.get(name_of_class, _CLS_SEP if bare else ())
    for name, default in needs:
        token = settings.token(name) or ("" if bare else default)
        if not token or token in there or (pooling == "last_token" and bare):
            continue
        if not bare:
            raise ImportRefused(
                f"{settings.path / TOKENIZER_FILE}: puts no {token!r} around a text, as "
                f"{name_of_class} does; save it again with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        report(f"warning: {TOKENIZER_FILE} does not put its {name} {token!r} around a text")
    if name_of_class in _BEGIN_BY_DEFAULT and not before and settings.flag("add_bos_token") is None:
        report(
            f"warning: {TOKENIZER_FILE} puts nothing in front of a text, as {name_of_class} often "
            f"does; add_bos_token in {TOKENIZER_CONFIG_FILE} says which is meant"
        )
    if pooling == "last_token" and not behind:
        report(
            f"warning: a text's vector is that of its last token, and {TOKENIZER_FILE} puts no end "
            f"token behind a text; if the model was trained with one, set add_eos_token = true in "
            f"{TOKENIZER_CONFIG_FILE}"
        )


def _tokens(tokenizer: RustTokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.id_to_token(number) or "" for number in ids]
