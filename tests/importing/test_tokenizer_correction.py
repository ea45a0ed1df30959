"""A tokenizer does what the folder's settings say; ids are counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from server.errors import ImportRefused
from server.importing.tokenizer_correction import correct
from tests.importing.tokenizers import WORDS, around, byte_pairs, settings_of, word_pieces

CASED, ACCENTS_STAY, CHINESE_STAYS = (
    {"lowercase": False},
    {"strip_accents": False},
    {"handle_chinese_chars": False},
)
SAID: dict[str, Any] = {"tokenizer_class": "BertTokenizer"}


def read(tokenizer: Any, text: str) -> list[str]:
    """The words between [CLS] and [SEP]."""
    return [WORDS[number] for number in tokenizer.encode(text).ids[1:-1]]


@pytest.mark.parametrize(
    ("does", "own", "text", "words"),
    [
        ({}, {"do_lower_case": False}, "Ärger", ["Ärger"]),
        (CASED, {"do_lower_case": True}, "Ärger", ["arger"]),
        (CASED, {"do_lower_case": True, "strip_accents": False}, "Ärger", ["ärger"]),
        ({}, {"strip_accents": False}, "Ärger", ["ärger"]),
        (CASED, {"do_lower_case": False, "strip_accents": True}, "Ärger", ["Arger"]),
        ({}, {"tokenize_chinese_chars": False}, "中文", ["中文"]),
    ],
)
def test_berts_settings_decide_over_its_tokenizer_json(
    tmp_path: Path, does: dict[str, Any], own: dict[str, Any], text: str, words: list[str]
) -> None:
    tokenizer = word_pieces(**does)
    assert read(tokenizer, text) != words
    lines: list[str] = []
    assert correct(tokenizer, settings_of(tmp_path, **SAID, **own), "mean", lines.append)
    assert read(tokenizer, text) == words
    (line,) = lines
    assert line.endswith("corrected to what the settings say")


@pytest.mark.parametrize(
    ("does", "own"),
    [
        ({}, {}),
        ({}, {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}),
        ({"strip_accents": True}, {}),  # in lower case it means the same
        (CASED, {"do_lower_case": False}),
        (CASED | {"strip_accents": False}, {"do_lower_case": False}),
    ],
)
def test_settings_that_say_what_the_tokenizer_does_change_nothing(
    tmp_path: Path, does: dict[str, Any], own: dict[str, Any]
) -> None:
    tokenizer = word_pieces(**does)
    before = tokenizer.to_str()
    lines: list[str] = []
    assert not correct(tokenizer, settings_of(tmp_path, **SAID, **own), "mean", lines.append)
    assert (tokenizer.to_str(), lines) == (before, [])


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (
            CASED,
            "makes 'Ärger' of 'Ärger', but BertTokenizer by tokenizer_config.json makes 'arger'",
        ),
        (
            ACCENTS_STAY,
            "makes 'ärger' of 'Ärger', but BertTokenizer by tokenizer_config.json makes 'arger'",
        ),
        (
            CHINESE_STAYS,
            "makes '中文' of '中文', but BertTokenizer by tokenizer_config.json makes ' 中  文 '",
        ),
    ],
)
def test_where_only_transformers_default_speaks_against_the_tokenizer_it_is_a_guess(
    tmp_path: Path, does: dict[str, Any], said: str
) -> None:
    with pytest.raises(ImportRefused, match=said):
        correct(word_pieces(**does), settings_of(tmp_path), "mean", lambda line: None)


def test_a_setting_that_the_class_does_not_read_has_no_effect_and_is_told(tmp_path: Path) -> None:
    """As of paraphrase-multilingual-MiniLM-L12-v2, whose publisher keeps capitals."""
    own: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}
    tokenizer = word_pieces(**CASED)
    lines: list[str] = []
    assert not correct(tokenizer, settings_of(tmp_path, **own), "mean", lines.append)
    assert read(tokenizer, "Ärger") == ["Ärger"]
    (line,) = lines
    assert line.endswith("no effect with PreTrainedTokenizerFast; tokenizer.json keeps capitals")


@pytest.mark.parametrize(("said", "ids"), [(True, [0, 6, 4, 1]), (False, [0, 3, 4, 1])])
@pytest.mark.parametrize("name", ["RobertaTokenizer", "PreTrainedTokenizerFast"])
def test_add_prefix_space_decides_how_a_text_begins(
    tmp_path: Path, said: bool, ids: list[int], name: str
) -> None:
    tokenizer = byte_pairs(add_prefix_space=not said)
    tokenizer.post_processor = around(["<s>"], ["</s>"], tokenizer)
    own: dict[str, Any] = {"tokenizer_class": name, "add_prefix_space": said}
    assert correct(tokenizer, settings_of(tmp_path, "roberta", **own), "mean", lambda line: None)
    assert tokenizer.encode("ab").ids == ids


def test_a_prefix_space_that_only_transformers_default_denies_is_a_guess(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "roberta")
    with pytest.raises(ImportRefused, match="begins a text as behind a blank, RobertaTokenizer"):
        correct(byte_pairs(add_prefix_space=True), settings, "mean", lambda line: None)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("kind", ["normaliser", "pre-tokenizer"])
def test_a_llamas_blank_in_front_is_seen_however_it_gets_there(
    tmp_path: Path, kind: str, begins: bool
) -> None:
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "▁": 3, "▁a": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")]))
    if kind == "normaliser":  # as Llama 2's and Mistral's files
        steps = [normalizers.Prepend("▁")] if begins else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    else:
        scheme = "first" if begins else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    assert tokenizer.encode("a").ids == [4 if begins else 2]
    own: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    settings = settings_of(tmp_path, "mistral", **own, add_prefix_space=begins)
    assert not correct(tokenizer, settings, "mean", lambda line: None)
    settings = settings_of(tmp_path, "mistral", **own, add_prefix_space=not begins)
    with pytest.raises(ImportRefused, match="LlamaTokenizer with add_prefix_space = "):
        correct(tokenizer, settings, "mean", lambda line: None)


def test_tokens_that_only_another_file_adds_are_added(tmp_path: Path) -> None:
    tokenizer = word_pieces()
    number = len(WORDS)
    other = {"added_tokens.json": {"[NEW]": number, "[MASK]": 4}}
    lines: list[str] = []
    assert correct(tokenizer, settings_of(tmp_path, other=other), "mean", lines.append)
    assert tokenizer.encode("[NEW] Ärger").ids == [2, number, 7, 3]
    assert lines == ["tokenizer.json lacks tokens that were added to the tokenizer; added: '[NEW]'"]


@pytest.mark.parametrize("number", [5, len(WORDS) + 1])
def test_an_added_token_of_another_number_is_refused(tmp_path: Path, number: int) -> None:
    settings = settings_of(tmp_path, added_tokens_decoder={str(number): {"content": "[NEW]"}})
    with pytest.raises(ImportRefused, match=rf"'\[NEW\]' is {number} in tokenizer_config"):
        correct(word_pieces(), settings, "mean", lambda line: None)


@pytest.mark.parametrize(
    "own",
    [
        {"added_tokens_decoder": {"6": {"content": "Ärger", "normalized": False}}},
        {"added_tokens_decoder": {"6": {"content": "Ärger", "special": True}}},
        {"additional_special_tokens": ["Ärger"]},
        {"extra_special_tokens": {"anger": "Ärger"}},
        {"mask_token": {"content": "Ärger", "__type": "AddedToken"}},
    ],
)
def test_a_word_that_other_files_make_a_token_of_its_own_is_found_first(
    tmp_path: Path, own: dict[str, Any]
) -> None:
    """As transformers finds it: before a text is put into lower case and split."""
    tokenizer = word_pieces()
    assert read(tokenizer, "Ärger xÄrger") == ["arger", "[UNK]"]
    lines: list[str] = []
    assert correct(tokenizer, settings_of(tmp_path, **own), "mean", lines.append)
    assert read(tokenizer, "Ärger xÄrger") == ["Ärger", "[UNK]", "Ärger"]
    assert lines == ["tokenizer.json lacks tokens that were added to the tokenizer; added: 'Ärger'"]


def test_an_added_token_is_found_as_the_settings_say(tmp_path: Path) -> None:
    tokenizer = word_pieces()
    fields = {"content": "[MASK]", "special": False, "normalized": True, "single_word": True}
    assert read(tokenizer, "[mask] x[MASK]") == ["[UNK]", "[UNK]", "[UNK]", "[UNK]", "[MASK]"]
    lines: list[str] = []
    settings = settings_of(tmp_path, added_tokens_decoder={"4": fields})
    assert correct(tokenizer, settings, "mean", lines.append)
    assert read(tokenizer, "[mask]")[0] == "[MASK]"
    assert "[MASK]" not in read(tokenizer, "x[MASK]")
    (line,) = lines
    assert line.startswith("tokenizer.json finds added tokens otherwise than tokenizer_config.json")
    assert line.endswith("corrected: '[MASK]'")


def test_special_tokens_that_no_vocabulary_has_stay_out(tmp_path: Path) -> None:
    """They would get numbers for which the weights have no vector."""
    tokenizer = word_pieces()
    settings = settings_of(tmp_path, mask_token="<mask>", extra_special_tokens=["<x>", 3])
    assert not correct(tokenizer, settings, "mean", lambda line: None)
    assert tokenizer.get_vocab_size() == len(WORDS)


def test_a_file_that_cuts_texts_from_the_left_is_refused(tmp_path: Path) -> None:
    tokenizer = word_pieces()
    tokenizer.enable_truncation(8, direction="left")
    with pytest.raises(ImportRefused, match=r"tokenizer\.json: truncation is from the left"):
        correct(tokenizer, settings_of(tmp_path), "mean", lambda line: None)


def test_a_chat_template_is_told_and_not_used(tmp_path: Path) -> None:
    lines: list[str] = []
    settings = settings_of(tmp_path, chat_template="{{ messages }}")
    assert not correct(word_pieces(), settings, "mean", lines.append)
    assert lines == ["the tokenizer's chat template is not used: a text is read as it is"]
