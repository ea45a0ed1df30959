from __future__ import annotations

import json
import random
import shutil
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer as RustTokenizer

from server.catalog.card import TOKENIZER_FILE, Card
from server.errors import (
    ContextLengthExceeded,
    InferenceFailed,
    InvalidRequest,
    ModelLoadError,
    TooManyTokens,
)
from server.inference import tokenizer as module
from server.inference.inputs import TextInputs, TokenIdInputs
from server.inference.long_texts import LONG_TEXT_CHARS, MAX_WINDOW_CHARS
from server.inference.tokenizer import Tokenizer
from tests.panics import let_panic

CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def tokenizer(plain_card: Card) -> Tokenizer:
    return Tokenizer(plain_card.path(TOKENIZER_FILE), max_input_tokens=256)


@pytest.fixture(scope="module")
def reference(plain_card: Card) -> RustTokenizer:
    rust = RustTokenizer.from_file(str(plain_card.path(TOKENIZER_FILE)))
    rust.no_padding()
    rust.no_truncation()
    return rust


def encode(
    tokenizer: Tokenizer,
    *texts: str,
    truncate: bool = False,
    prompt: str = "",
    max_request_tokens: int = 300_000,
) -> list[list[int]]:
    inputs = TextInputs(is_list=True, texts=list(texts))
    encoded = tokenizer.encode_texts(
        inputs, prompt=prompt, truncate=truncate, max_request_tokens=max_request_tokens
    )
    return [token_ids.tolist() for token_ids in encoded]


def test_the_files_own_padding_and_cut_at_128_do_not_apply(tokenizer: Tokenizer) -> None:
    short, long = encode(tokenizer, "hello", "hello " * 200)
    assert len(short) == 3
    assert len(long) == 202


def test_texts_keep_their_order_across_chunks(
    tokenizer: Tokenizer, reference: RustTokenizer
) -> None:
    texts = [f"text number {n} " + "filler " * (n % 90) for n in range(2048)]
    assert sum(map(len, texts)) > module.CHUNK_CHARS
    assert encode(tokenizer, *texts) == [reference.encode(text).ids for text in texts]


def test_a_text_at_the_limit_passes_and_one_token_more_is_refused(tokenizer: Tokenizer) -> None:
    assert len(encode(tokenizer, "hello " * 254)[0]) == 256
    with pytest.raises(ContextLengthExceeded, match=r"257 tokens \(input\[1\]\)"):
        encode(tokenizer, "fine", "hello " * 255)


def test_a_cut_text_keeps_its_special_tokens(tokenizer: Tokenizer) -> None:
    (cut,) = encode(tokenizer, "one two " * 500, truncate=True)
    assert len(cut) == 256
    assert (cut[0], cut[-1]) == (CLS, SEP)
    assert SEP not in cut[:-1]


@pytest.mark.parametrize("truncate", [False, True])
def test_a_huge_text_gives_the_ids_that_one_pass_gives(
    tokenizer: Tokenizer, reference: RustTokenizer, truncate: bool
) -> None:
    text = "The naïve fox, 12 km away, jumps over 東京 lazily. " * 4000
    assert len(text) > 2 * LONG_TEXT_CHARS
    if truncate:
        reference_ids = reference.encode(text[:5000]).ids
        assert encode(tokenizer, text, truncate=True)[0] == [*reference_ids[:255], SEP]
    else:
        with pytest.raises(ContextLengthExceeded) as caught:
            encode(tokenizer, text)
        assert f"requested {len(reference.encode(text).ids)} tokens" in caught.value.message


@pytest.mark.parametrize("char", ["a", "東", "🎉"])
@pytest.mark.parametrize("chars", [LONG_TEXT_CHARS, LONG_TEXT_CHARS + 1, MAX_WINDOW_CHARS + 1])
def test_a_text_without_blanks_is_read_or_cut_like_others(
    tokenizer: Tokenizer, reference: RustTokenizer, char: str, chars: int
) -> None:
    text = f"{char * chars} end"
    expected = reference.encode(text).ids
    if len(expected) > 256:
        expected = [*expected[:255], SEP]
    assert encode(tokenizer, "fine", text, truncate=True)[1] == expected


@pytest.mark.parametrize("alphabet", ["東京都に住", "abcdefgh/+"])
def test_a_text_without_blanks_that_may_not_be_cut_is_refused_by_its_count(
    tokenizer: Tokenizer, reference: RustTokenizer, alphabet: str
) -> None:
    text = "".join(random.Random(0).choices(alphabet, k=MAX_WINDOW_CHARS + 1))
    count = len(reference.encode(text).ids)
    with pytest.raises(ContextLengthExceeded, match=rf"requested {count} tokens \(input\[1\]\)"):
        encode(tokenizer, "fine", text)


def test_32_mib_of_one_run_are_read_to_their_end(tokenizer: Tokenizer) -> None:
    run = "a" * 2**25
    unknown = 100
    assert encode(tokenizer, run + " end", truncate=True) == [[CLS, unknown, 2203, SEP]]
    assert encode(tokenizer, run + "b") == [[CLS, unknown, SEP]]


def test_encoding_stops_when_nobody_waits(tokenizer: Tokenizer) -> None:
    stop = threading.Event()
    stop.set()
    for texts in (["short"], [" " * (3 * LONG_TEXT_CHARS)]):
        with pytest.raises(CancelledError):
            tokenizer.encode_texts(
                TextInputs(is_list=True, texts=texts),
                prompt="",
                truncate=True,
                max_request_tokens=100,
                stop=stop,
            )


def test_a_huge_text_is_left_when_it_is_over_the_requests_limit(tokenizer: Tokenizer) -> None:
    with pytest.raises(TooManyTokens, match="300000"):
        encode(tokenizer, "word " * 2_000_000)


def test_all_texts_together_are_limited_after_the_cut(tokenizer: Tokenizer) -> None:
    encode(tokenizer, *["hello " * 300] * 4, truncate=True, max_request_tokens=1024)
    with pytest.raises(TooManyTokens, match=r"input\[4\]"):
        encode(tokenizer, *["hello " * 300] * 5, truncate=True, max_request_tokens=1024)


def test_the_prompt_is_read_and_counted(tokenizer: Tokenizer, reference: RustTokenizer) -> None:
    assert encode(tokenizer, "fox", prompt="query: ") == [reference.encode("query: fox").ids]
    huge = "fox " * LONG_TEXT_CHARS
    (cut,) = encode(tokenizer, huge, prompt="query: ", truncate=True)
    assert cut[:4] == reference.encode("query: fox fox").ids[:4]


def test_white_space_and_odd_characters_are_texts_like_others(tokenizer: Tokenizer) -> None:
    assert encode(tokenizer, " ", "\t\n", "\x00", "�") == [[CLS, SEP]] * 4


def test_own_token_ids_are_read_as_they_are(tokenizer: Tokenizer) -> None:
    inputs = TokenIdInputs(is_list=True, token_ids=[[CLS, 7592, SEP], [7592]])
    read = tokenizer.read_token_ids(inputs, truncate=False, max_request_tokens=10)
    assert [ids.tolist() for ids in read] == inputs.token_ids


def test_own_token_ids_are_cut_or_refused_like_texts(tokenizer: Tokenizer) -> None:
    long = TokenIdInputs(is_list=False, token_ids=[[CLS, *[7592] * 300, SEP]])
    with pytest.raises(ContextLengthExceeded, match=r"302 tokens \(input\)"):
        tokenizer.read_token_ids(long, truncate=False, max_request_tokens=1000)
    (cut,) = tokenizer.read_token_ids(long, truncate=True, max_request_tokens=1000)
    assert cut.tolist() == [CLS, *[7592] * 254, SEP]
    bare = TokenIdInputs(is_list=False, token_ids=[[7592] * 300])
    (cut,) = tokenizer.read_token_ids(bare, truncate=True, max_request_tokens=1000)
    assert cut.tolist() == [7592] * 256


def test_an_unknown_own_token_id_is_named_with_its_position(tokenizer: Tokenizer) -> None:
    inputs = TokenIdInputs(is_list=True, token_ids=[[1], [1, 30522]])
    with pytest.raises(InvalidRequest, match=r"input\[1\]\[1\]: token id 30522"):
        tokenizer.read_token_ids(inputs, truncate=False, max_request_tokens=10)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json", max_input_tokens=8)


def test_the_vocabulary_ends_behind_the_highest_id(tmp_path: Path, plain_card: Card) -> None:
    content = json.loads(plain_card.path(TOKENIZER_FILE).read_text())
    added = content["added_tokens"][-1]
    content["added_tokens"].append({**added, "id": 40_000, "content": "[FAR]"})
    (tmp_path / TOKENIZER_FILE).write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path / TOKENIZER_FILE, max_input_tokens=8)
    last = tokenizer.vocabulary_size - 1
    assert encode(tokenizer, "[FAR]") == [[CLS, last, SEP]]
    assert tokenizer.token(last) == "[FAR]"
    assert tokenizer.token(last + 1) == ""


@pytest.fixture
def copy(plain_card: Card, tmp_path: Path) -> Path:
    shutil.copy(plain_card.path(TOKENIZER_FILE), tmp_path)
    return tmp_path / TOKENIZER_FILE


@pytest.mark.parametrize("when", ["when it is read", "at every text"])
def test_a_tokenizer_that_panics_cannot_be_loaded(copy: Path, when: str) -> None:
    with pytest.raises(ModelLoadError, match=f"tokenizer {copy}: ") as caught:
        Tokenizer(let_panic(copy, when), max_input_tokens=256)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("filler", ["", "word " * (LONG_TEXT_CHARS // 4)], ids=["short", "long"])
def test_a_panic_is_told_at_its_text_and_the_tokenizer_lives_on(copy: Path, filler: str) -> None:
    tokenizer = Tokenizer(let_panic(copy, "at emoji"), max_input_tokens=256)
    with pytest.raises(InferenceFailed, match=r"^input\[2\]: ") as caught:
        encode(tokenizer, "fine", "fine, too", filler + "\N{GRINNING FACE}", truncate=True)
    assert caught.value.param == "input"
    assert encode(tokenizer, "hello") == [[CLS, 7592, SEP]]


def test_a_word_the_library_fails_on_is_told_at_its_text(copy: Path) -> None:
    content = json.loads(copy.read_bytes())
    content["model"]["unk_token"] = "[GONE]"
    copy.write_text(json.dumps(content))
    tokenizer = Tokenizer(copy, max_input_tokens=256)
    texts = ["all is known", "all is known but \N{GRINNING FACE}"]
    for _ in range(2):
        with pytest.raises(InferenceFailed, match=r"^input\[1\]: .*UNK"):
            encode(tokenizer, *texts)
        assert encode(tokenizer, texts[0]) == [[CLS, 2035, 2003, 2124, SEP]]


def test_an_interrupt_is_no_failure_of_a_text(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(copy, max_input_tokens=256)
    found = iter([KeyboardInterrupt, RuntimeError])

    def fail(texts: list[str]) -> None:
        raise next(found)

    monkeypatch.setattr(tokenizer, "_words", SimpleNamespace(encode=fail))
    monkeypatch.setattr(tokenizer, "_rust", SimpleNamespace(encode_batch_fast=fail))
    with pytest.raises(KeyboardInterrupt):
        encode(tokenizer, "fine", "also fine")
