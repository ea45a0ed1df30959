"""Window by window a text has the ids that one pass gives, whatever its tokenizer and script."""

from __future__ import annotations

import base64
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Encoding, Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from server.catalog.card import TOKENIZER_FILE, Card
from server.inference import long_texts
from server.inference.long_texts import encode_windows

# Few characters of each script, so that small vocabularies have tokens of several of them.
CHINESE, THAI, MARKS = "敏捷的棕色狐狸跳过了懒狗東京都", "ภาษาไทยไม่มีช่องว่าง", "ae\u0301\u0302\u0323"
JAPANESE, EMOJI, DIGITS = "すべての人間は、生まれながらにして。", "🎉👩\u200d💻🇩🇪", "0123456789"
WORDS = ["the", "quick", " ", "brown", "  ", "fox", ". ", "\n", "naïve ", "[UNK]", " \t "]
MAX_TOKEN_CHARS = 12  # each position in so many costs a pass
WINDOW = 2_000


def chars(draw: random.Random, alphabet: str, count: int) -> str:
    return "".join(draw.choices(alphabet, k=count))


def corpus() -> list[str]:
    draw = random.Random(0)
    alphabets = (CHINESE, THAI, JAPANESE, MARKS, EMOJI, DIGITS)
    texts = [chars(draw, alphabet, 60) for alphabet in alphabets for _ in range(20)]
    return texts + ["".join(draw.choices(WORDS, k=40)) for _ in range(60)]


def word_pieces() -> RustTokenizer:
    """As BERT's multilingual ones, but accents stay."""
    tokenizer = RustTokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFD()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return trained(tokenizer, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"]))


def byte_pairs() -> RustTokenizer:
    """As RoBERTa's and Qwen's."""
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, byte_pair_trainer(initial_alphabet=alphabet))


def byte_pairs_of_whole_texts() -> RustTokenizer:
    """As Gemma's: blanks are characters like others."""
    tokenizer = RustTokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    blanks = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    return trained(tokenizer, byte_pair_trainer(special_tokens=["[UNK]"]))


def unigram() -> RustTokenizer:
    """As XLM-RoBERTa's."""
    tokenizer = RustTokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    return trained(tokenizer, unigram_trainer())


def unigram_of_whole_texts() -> RustTokenizer:
    """As T5's, with all of a text in one piece."""
    tokenizer = RustTokenizer(models.Unigram())
    blanks = normalizers.Replace(Regex(" {2,}"), "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), blanks])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return trained(tokenizer, unigram_trainer())


def byte_pair_trainer(**options: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=700, max_token_length=MAX_TOKEN_CHARS, **options)


def unigram_trainer() -> Any:
    return trainers.UnigramTrainer(
        vocab_size=400,
        unk_token="[UNK]",
        special_tokens=["[UNK]"],
        max_piece_length=MAX_TOKEN_CHARS,
    )


def trained(tokenizer: RustTokenizer, trainer: Any) -> RustTokenizer:
    trainer.show_progress = False
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


TRAINED = [word_pieces, byte_pairs, byte_pairs_of_whole_texts, unigram, unigram_of_whole_texts]


@pytest.fixture(scope="module")
def minilm(plain_card: Card) -> RustTokenizer:
    rust = RustTokenizer.from_file(str(plain_card.path(TOKENIZER_FILE)))
    rust.no_padding()
    rust.no_truncation()
    return rust


@pytest.fixture(
    scope="module", params=["minilm", *TRAINED], ids=lambda of: getattr(of, "__name__", of)
)
def rust(request: pytest.FixtureRequest) -> RustTokenizer:
    if request.param == "minilm":
        return cast(RustTokenizer, request.getfixturevalue("minilm"))
    return cast(RustTokenizer, request.param())


@pytest.fixture(scope="module", autouse=True)
def _small_windows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "LONG_TEXT_CHARS", WINDOW)
        patch.setattr(long_texts, "MAX_WINDOW_CHARS", 4 * WINDOW)
        yield


def in_windows(rust: RustTokenizer, text: str) -> list[int]:
    return [one for ids in encode_windows(rust, text, longest_token(rust)) for one in ids]


@functools.cache
def longest_token(rust: RustTokenizer) -> int:
    return max(map(len, rust.get_vocab()))


def in_one_pass(rust: RustTokenizer, text: str) -> list[int]:
    return rust.encode(text, add_special_tokens=False).ids


def of(alphabet: str) -> Callable[[random.Random, int], str]:
    return lambda draw, count: chars(draw, alphabet, count)


SCRIPTS: list[Callable[[random.Random, int], str]] = [
    of(CHINESE),
    of(THAI),
    of(JAPANESE),
    of(EMOJI),
    of(DIGITS),
    of("abcdefghij"),  # to WordPiece one unknown word
    lambda draw, count: base64.b64encode(draw.randbytes(count)).decode(),
    lambda draw, count: "".join(draw.choices(WORDS, k=count // 3 + 1)),
    lambda draw, count: chars(draw, MARKS, min(count, 400)),
    # Longer, what repeats or is removed may make what is far away another token.
    lambda draw, count: draw.choice([" ", "a", "東", "=", "🎉", "ab", "\u0301"]) * min(count, 400),
    lambda draw, count: "".join(chr(draw.randrange(32, 0xD800)) for _ in range(min(count, 400))),
]
PIECES = st.lists(
    st.tuples(st.sampled_from(SCRIPTS), st.integers(1, 4_000)), min_size=1, max_size=6
)


@settings(max_examples=25)
@given(PIECES, st.integers(0, 2**32))
def test_a_text_of_any_scripts_has_the_ids_that_one_pass_gives(
    rust: RustTokenizer, pieces: list[tuple[Callable[[random.Random, int], str], int]], seed: int
) -> None:
    draw = random.Random(seed)
    text = "".join(make(draw, count) for make, count in pieces)
    found, expected = in_windows(rust, text), in_one_pass(rust, text)
    if isinstance(rust.model, models.Unigram) and found != expected:
        # Among equally probable divisions of "🇩🇩🇩" rounding decides, of a sum over all before it.
        first = len(in_one_pass(rust, text[: WINDOW // 2])) - MAX_TOKEN_CHARS
        assert found[:first] == expected[:first]
        found, expected = sorted(found), sorted(expected)
    assert found == expected


@pytest.mark.parametrize("char", ["a", "東", " ", "🎉", "\u0301"])
@pytest.mark.parametrize("end", ["", " the end", "b"])
def test_a_run_of_one_character_has_the_ids_that_one_pass_gives(
    minilm: RustTokenizer, char: str, end: str
) -> None:
    for count in (WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 1, 4 * WINDOW + 1, 8 * WINDOW):
        text = char * count + end
        assert in_windows(minilm, text) == in_one_pass(minilm, text)


@pytest.mark.parametrize("make", [byte_pairs, unigram])
def test_a_run_that_fits_a_grown_window_is_divided_as_in_one_pass(
    make: Callable[[], RustTokenizer],
) -> None:
    rust = make()
    for char in ("a", "東", "🎉", "=", "13"):
        text = CHINESE * 60 + char * (WINDOW * 3 // len(char)) + CHINESE * 200
        assert in_windows(rust, text) == in_one_pass(rust, text)


def unigram_of(**scores: float) -> RustTokenizer:
    vocabulary = [("[UNK]", -20.0), *scores.items()]
    return RustTokenizer(models.Unigram(vocabulary, unk_id=0))


def test_where_the_end_of_a_run_decides_its_beginning_it_is_looked_at_to_its_end() -> None:
    # "x" "ab" "cd" … or "xa" "bc" "da" …, as the run ends.
    pieces = {"ab": -1.0, "cd": -1.0, "bc": -1.0, "da": -1.0, "xa": -1.0, "x": -1.0, "e": -1.0}
    rust = unigram_of(**pieces, a=-5.0, b=-5.0, c=-5.0, d=-5.0)
    begun = set()
    for odd in range(4):
        text = "e" * 50 + "x" + ("abcd" * WINDOW)[: WINDOW * 2 + odd] + "e" * 2 * WINDOW
        found = in_windows(rust, text)
        assert found == in_one_pass(rust, text)
        begun.add(found[50])
    assert len(begun) == 2


def test_where_rounding_decides_it_is_the_rounding_of_the_whole_text() -> None:
    rust = unigram_of(a=-6.0, aaa=-7.6, b=-2.4, c=-2.8)
    draw = random.Random(0)
    for odd in range(12):
        begin = chars(draw, "bc", 100)
        text = begin + "a" * (WINDOW * 2 + odd) + chars(draw, "bc", 3 * WINDOW)
        assert in_windows(rust, text) == in_one_pass(rust, text)


def test_marks_inside_of_a_word_do_not_part_it(minilm: RustTokenizer) -> None:
    for count in (WINDOW - 8, WINDOW, 2 * WINDOW, 3 * WINDOW):
        text = "one two b" + "\u0301" * count + "e three four" + " and so on" * WINDOW
        assert in_windows(minilm, text) == in_one_pass(minilm, text)


def test_marks_inside_of_a_word_over_the_largest_window_part_it_and_change_nothing_else(
    minilm: RustTokenizer,
) -> None:
    text = "one two b" + "\u0301" * 5 * WINDOW + "e three four"
    assert minilm.encode(text, add_special_tokens=False).tokens == [
        "one",
        "two",
        "be",
        "three",
        "four",
    ]
    parted = [minilm.id_to_token(token_id) for token_id in in_windows(minilm, text)]
    assert parted == ["one", "two", "b", "e", "three", "four"]


class Counting:
    """A tokenizer that notes how many characters it is given."""

    def __init__(self, rust: RustTokenizer) -> None:
        self._rust = rust
        self.passes: list[int] = []

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self._rust.get_added_tokens_decoder()

    def encode_batch(self, texts: list[str], **options: Any) -> list[Encoding]:
        self.passes += map(len, texts)
        return self._rust.encode_batch(texts, **options)


@pytest.mark.parametrize("alphabet", [CHINESE, MARKS, "\u0301", "a", " ", EMOJI, "abcdefghij"])
def test_no_pass_is_larger_than_a_window_and_all_together_grow_with_the_text(
    rust: RustTokenizer, alphabet: str
) -> None:
    counting = Counting(rust)
    text = chars(random.Random(0), alphabet, 15 * WINDOW)
    ids = [one for ids in encode_windows(cast(RustTokenizer, counting), text, 2) for one in ids]
    assert len(ids) <= len(in_one_pass(rust, text)) + 50
    assert max(counting.passes) <= long_texts.MAX_WINDOW_CHARS
    # Windows of this test's size overlap by most of it.
    assert sum(counting.passes) < 20 * len(text)


def test_what_repeats_is_looked_at_once(minilm: RustTokenizer) -> None:
    counting = Counting(minilm)
    list(encode_windows(cast(RustTokenizer, counting), "a" * 400_000, 2))
    assert sum(counting.passes) < 10_000


def byte_pairs_of_three_digits() -> RustTokenizer:
    """As Llama 3's and GPT-4's, with few tokens of three digits; and a mask as RoBERTa's."""
    tokenizer = RustTokenizer(models.BPE())
    pieces = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    draw = random.Random(1)
    digits = [chars(draw, DIGITS, 60) for _ in range(100)]
    blanks = [chars(draw, " \n", 12) for _ in range(100)]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        max_token_length=MAX_TOKEN_CHARS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*digits, *blanks, "ab cd. " * 100], trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


def test_pieces_of_three_digits_stay_in_step() -> None:
    rust = byte_pairs_of_three_digits()
    draw = random.Random(2)
    for odd in range(9):
        text = "ab " * 450 + "x" * odd + " " + chars(draw, DIGITS, WINDOW * 3) + " end" * 20
        assert in_windows(rust, text) == in_one_pass(rust, text)


def test_pieces_of_three_digits_stay_in_step_behind_digits_that_do_not_tell() -> None:
    rust = byte_pairs_of_three_digits()
    draw = random.Random(3)
    lone = "\u0661\u0662"  # digits that the vocabulary has no token of
    for odd in range(3):
        text = "ab " * 300 + " " + chars(draw, lone, WINDOW * 2 + odd) + chars(draw, DIGITS, WINDOW)
        assert in_windows(rust, text) == in_one_pass(rust, text)


@pytest.mark.parametrize("make", [byte_pairs_of_three_digits, byte_pairs_of_whole_texts])
@pytest.mark.parametrize("count", [300, 1_200])
@pytest.mark.parametrize("shift", [0, 3])
def test_white_space_that_a_later_token_takes_gives_no_tokens(
    make: Callable[[], RustTokenizer], count: int, shift: int
) -> None:
    rust = make()
    rust.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    draw = random.Random(4)
    mask = "<mask> and more text " * 20
    for around in range(4):
        blanks = chars(draw, " \n\t", count)
        # The window's end is in the white space, or in the mask itself.
        end = WINDOW - count + (count // 2 if around % 2 else -around - shift)
        text = ("ab cd. " * WINDOW)[:end] + blanks + mask
        assert in_windows(rust, text) == in_one_pass(rust, text)
