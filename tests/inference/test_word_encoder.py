"""Texts encoded by their words are compared with the library's own pass over each whole text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from server.catalog.card import TOKENIZER_FILE, Card
from server.inference import word_cache
from server.inference import word_encoder as module
from server.inference.word_encoder import WordEncoder
from tests.inference.both_ways import BothWays, read_tokenizer
from tests.inference.odd_texts import OddTexts

LETTERS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFSTWéïßı東京とa\u0301한국0123456789,.-'\"()[]<>_/:;!?…\u037e"
)
VOCABULARY = {
    token: number
    for number, token in enumerate(
        ["[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(LETTERS), *(f"##{c}" for c in set(LETTERS))]
    )
}
NORMALIZERS: dict[str, dict[str, bool] | None] = {
    "none": None,
    "uncased": {},
    "cased": {"lowercase": False},
    "cased without accents": {"lowercase": False, "strip_accents": True},
    "uncased with accents": {"strip_accents": False},
    "without Chinese": {"handle_chinese_chars": False},
    "uncleaned": {"clean_text": False},
}
ADDED = {
    "none": [],
    "special": [AddedToken("[X]", special=True), AddedToken("<é>", special=True)],
    "that strip": [
        AddedToken("<l>", lstrip=True, normalized=False),
        AddedToken("<r>", rstrip=True, normalized=False),
        AddedToken("Both", lstrip=True, rstrip=True, normalized=True),
    ],
    "of single words": [
        AddedToken("cat", single_word=True, normalized=False),
        AddedToken("Éa", single_word=True, normalized=True, lstrip=True),
    ],
    "normalised": [AddedToken("Ab", normalized=True), AddedToken("abc", normalized=False)],
    "with marks": [AddedToken("(a,b)", normalized=False), AddedToken("it's", normalized=True)],
}


def make_tokenizer(normalizer: str = "uncased", added: str = "none") -> RustTokenizer:
    rust = RustTokenizer(
        models.WordPiece(VOCABULARY, unk_token="[UNK]", max_input_chars_per_word=20)
    )
    settings = NORMALIZERS[normalizer]
    if settings is not None:
        rust.normalizer = normalizers.BertNormalizer(**settings)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    rust.add_tokens(ADDED[added])
    return rust


def check(rust: RustTokenizer, *, seed: int, count: int) -> None:
    """Compare for so many texts."""
    texts = OddTexts(seed, [token.content for token in rust.get_added_tokens_decoder().values()])
    assert BothWays(rust).differing([texts.draw() for _ in range(count)]) == []


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_the_ids_are_those_of_one_pass_over_the_text(normalizer: str, added: str) -> None:
    check(make_tokenizer(normalizer, added), seed=len(normalizer + added), count=50)


@pytest.fixture(scope="module")
def real(plain_card: Card) -> RustTokenizer:
    return read_tokenizer(plain_card.path(TOKENIZER_FILE))


def test_other_ids_would_be_seen(real: RustTokenizer) -> None:
    both = BothWays(real)
    both.by_words = lambda texts: both.one_pass([text.replace("é", "x") for text in texts])  # type: ignore[method-assign]
    assert both.differing(["a", "é", "b"]) == ["é", "é"]


def test_the_ids_of_a_real_tokenizer_are_those_of_one_pass(real: RustTokenizer) -> None:
    check(real, seed=1, count=1_000)


def test_words_are_forgotten_and_learned_again(
    real: RustTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_cache, "MAX_BYTES", 5_000)
    check(real, seed=2, count=500)


def test_threads_share_what_they_learn(
    real: RustTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_cache, "MAX_BYTES", 20_000)
    both = BothWays(real)
    texts = OddTexts(3, ["[MASK]"])
    requests = [[texts.draw() for _ in range(10)] for _ in range(40)] * 4
    with ThreadPoolExecutor(4) as threads:
        encoded = list(threads.map(both.by_words, requests))
    for request, ids in zip(requests, encoded, strict=True):
        expected = both.one_pass(request)
        assert [one.tolist() for one in ids] == [one.tolist() for one in expected]


def test_what_is_known_is_not_asked_for_again(real: RustTokenizer) -> None:
    encoder, asked = watched(real)
    text = "The fox, which jumps.\nIt jumps"
    encoder.encode([text])
    assert asked[0][0] == text  # of new words only: as a whole, and to learn them
    assert sorted(asked[0][1].split(" , ")) == [".", "It", "The", "fox", "jumps", "which"]
    encoder.encode([text, "which fox jumps, which"])
    assert len(asked) == 1
    encoder.encode(["It jumps over which fox"])
    assert asked[1:] == [["over"]]


def test_of_texts_of_new_words_few_are_learned(real: RustTokenizer) -> None:
    encoder, asked = watched(real)
    texts = [f"new{n} words{n}" for n in range(2 * module.LEARNED_OF_MANY)]
    encoder.encode(texts)
    assert asked[0][:-1] == texts
    assert len(asked[0][-1].split(" , ")) == 4


def test_a_word_too_long_to_be_kept_is_asked_for_again(real: RustTokenizer) -> None:
    encoder, asked = watched(real)
    long = "x" * (word_cache.MAX_WORD_CHARS + 1)
    encoder.encode([f"and {long}"])
    for _ in range(2):
        encoder.encode([f"and and {long}"])
    assert asked == [[f"and {long}", "and"], [long], [long]]


def watched(rust: RustTokenizer) -> tuple[WordEncoder, list[list[str]]]:
    """With what the library is asked for, call by call."""
    encoder = BothWays(rust).encoder
    asked: list[list[str]] = []

    def encode(texts: list[str], *, add_special_tokens: bool) -> Any:
        asked.append(texts)
        return rust.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    encoder._rust = SimpleNamespace(encode_batch_fast=encode)  # type: ignore[assignment]
    return encoder, asked


def test_who_waits_for_the_interpreter_gets_it_between_texts(
    real: RustTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=slept.append))
    encoder = BothWays(real).encoder
    encoder.encode(["word " * 100] * 4)
    assert slept == []
    encoder.encode(["word " * 100] * (3 * module.CHARS_AT_ONCE // 500))
    assert len(slept) == 2


def test_an_absent_mark_stands_between_no_words() -> None:
    vocabulary = {token: number for token, number in VOCABULARY.items() if token != ","}
    rust = make_tokenizer()
    rust.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    check(rust, seed=4, count=100)


def test_a_mark_that_shares_its_id_stands_between_no_words() -> None:
    rust = make_tokenizer()
    rust.model = models.WordPiece(VOCABULARY | {"pro": VOCABULARY[","]}, unk_token="[UNK]")
    assert BothWays(rust).differing(["the pro the the", "pro", "the, pro,"]) == []


def with_changes(**changes: Any) -> RustTokenizer:
    rust = make_tokenizer()
    for name, value in changes.items():
        setattr(rust, name, value)
    return rust


def with_added(*tokens: AddedToken, normalizer: str = "uncased") -> RustTokenizer:
    rust = make_tokenizer(normalizer)
    rust.add_tokens(list(tokens))
    return rust


@pytest.mark.parametrize(
    "processor",
    [None, processors.RobertaProcessing(("[SEP]", 2), ("[CLS]", 1))],
    ids=["nothing", "RoBERTa's"],
)
def test_what_stands_around_a_text_may_be_nothing_or_from_roberta(processor: Any) -> None:
    check(with_changes(post_processor=processor), seed=5, count=50)


NOT_CUT = {
    "another model": lambda: with_changes(model=models.WordLevel(VOCABULARY, "[UNK]")),
    "words of no length": lambda: with_changes(
        model=models.WordPiece(VOCABULARY, unk_token="[UNK]", max_input_chars_per_word=0)
    ),
    "another pre-tokenizer": lambda: with_changes(pre_tokenizer=pre_tokenizers.Whitespace()),
    "no pre-tokenizer": lambda: with_changes(pre_tokenizer=None),
    "another normalizer": lambda: with_changes(normalizer=normalizers.Strip()),
    "more than one normalizer": lambda: with_changes(
        normalizer=normalizers.Sequence([normalizers.BertNormalizer()])
    ),
    "another post-processor": lambda: with_changes(post_processor=processors.ByteLevel()),
    "a text given twice": lambda: with_changes(
        post_processor=processors.TemplateProcessing(single="$A $A", special_tokens=[])
    ),
    "an added token with a blank": lambda: with_added(AddedToken("a b")),
    "an added token with a line feed": lambda: with_added(AddedToken("\n", normalized=False)),
    "an added token with blanks when normalised": lambda: with_added(AddedToken("東京")),
    "an added token that is nothing when normalised": lambda: with_added(AddedToken("\u0301")),
    "added tokens with each mark": lambda: with_added(*map(AddedToken, module.MARKS)),
}


@pytest.mark.parametrize("name", NOT_CUT)
def test_a_tokenizer_whose_texts_may_be_more_than_their_words_is_not_cut(name: str) -> None:
    around = np.asarray([1], dtype=np.int32)
    assert WordEncoder.of(make_tokenizer(), around, around) is not None
    assert WordEncoder.of(NOT_CUT[name](), around, around) is None
