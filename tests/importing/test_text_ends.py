"""The tokens around a text are those that the publisher's settings say; ids are counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.errors import ImportRefused
from server.importing.text_ends import check_ends, follow_end_settings
from tests.importing.tokenizers import around, byte_pairs, settings_of, word_pieces

MISTRAL: dict[str, Any] = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
}


@pytest.mark.parametrize(
    ("own", "there", "ids"),
    [
        ({"add_eos_token": True}, ([], []), [3, 1]),
        ({"add_bos_token": True}, ([], []), [0, 3]),
        ({"add_bos_token": True, "add_eos_token": True}, ([], []), [0, 3, 1]),
        # As e5-mistral-7b-instruct: settings with both, a tokenizer.json with the first only.
        ({"add_bos_token": True, "add_eos_token": True}, (["<s>"], []), [0, 3, 1]),
        ({"add_eos_token": True}, (["<s>"], []), [0, 3, 1]),
    ],
)
def test_an_end_token_that_the_settings_ask_for_is_put_there(
    tmp_path: Path, own: dict[str, Any], there: tuple[list[str], list[str]], ids: list[int]
) -> None:
    tokenizer = byte_pairs()
    tokenizer.post_processor = around(*there, tokenizer)
    lines = follow_end_settings(tokenizer, settings_of(tmp_path, "mistral", **MISTRAL, **own))
    assert tokenizer.encode("a").ids == ids
    assert tokenizer.encode("b a").ids == [*ids[: ids.index(3)], 4, 6, *ids[ids.index(3) + 1 :]]
    assert tokenizer.encode("").ids == [number for number in ids if number != 3]
    assert len(lines) == len(ids) - 1 - len(there[0])


@pytest.mark.parametrize(
    ("own", "there", "ids"),
    [
        ({}, (["<s>"], ["</s>"]), [0, 3, 1]),  # not said: tokenizer.json alone says it
        ({"add_eos_token": True}, ([], ["</s>"]), [3, 1]),
        # As Qwen3-Embedding: its end token is not the one that it calls eos_token.
        ({"add_bos_token": False, "add_eos_token": False}, ([], ["<|end|>"]), [3, 2]),
    ],
)
def test_what_is_as_it_is_said_stays(
    tmp_path: Path, own: dict[str, Any], there: tuple[list[str], list[str]], ids: list[int]
) -> None:
    tokenizer = byte_pairs()
    tokenizer.post_processor = around(*there, tokenizer)
    tokenizer.enable_padding(length=8)  # as some files do, which is no token around a text
    assert follow_end_settings(tokenizer, settings_of(tmp_path, "qwen3", **MISTRAL, **own)) == []
    assert tokenizer.encode("a").ids == ids


@pytest.mark.parametrize(
    ("own", "there", "said"),
    [
        ({"add_eos_token": True}, ([], ["<|end|>"]), r"puts '<\|end\|>' there; set eos_token"),
        ({"add_eos_token": False}, ([], ["</s>"]), "add_eos_token is false, but tokenizer.json"),
        ({"add_bos_token": False}, (["<s>"], []), "add_bos_token is false, but tokenizer.json"),
        (
            {"add_eos_token": True, "eos_token": None},
            ([], []),
            "is true, but there is no eos_token",
        ),
        ({"add_eos_token": True, "eos_token": "<e>"}, ([], []), "has no token '<e>'"),
    ],
)
def test_settings_that_contradict_the_tokenizer_are_refused(
    tmp_path: Path, own: dict[str, Any], there: tuple[list[str], list[str]], said: str
) -> None:
    tokenizer = byte_pairs()
    tokenizer.post_processor = around(*there, tokenizer)
    settings = settings_of(tmp_path, "mistral", **MISTRAL | own)
    with pytest.raises(ImportRefused, match=said):
        follow_end_settings(tokenizer, settings)


def test_a_bos_token_that_is_also_the_cls_token_is_no_contradiction(tmp_path: Path) -> None:
    """DeBERTa's tokenizer_config.json says so of itself."""
    own: dict[str, Any] = {"bos_token": "[CLS]", "cls_token": "[CLS]", "add_bos_token": False}
    tokenizer = word_pieces()
    assert follow_end_settings(tokenizer, settings_of(tmp_path, "deberta", **own)) == []


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_bert_whose_tokenizer_puts_nothing_around_a_text_is_refused(
    tmp_path: Path, pooling: Any
) -> None:
    tokenizer = word_pieces()
    check_ends(tokenizer, settings_of(tmp_path), pooling, lambda line: None)
    tokenizer.post_processor = around([], ["[SEP]"], tokenizer)
    with pytest.raises(ImportRefused, match=r"puts no '\[CLS\]' around a text, as BertTokenizer"):
        check_ends(tokenizer, settings_of(tmp_path), pooling, lambda line: None)


def test_a_t5_encoder_without_its_end_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="puts no '</s>' around a text, as T5Tokenizer does"):
        check_ends(byte_pairs(), settings_of(tmp_path, "t5"), "mean", lambda line: None)


def test_a_plain_tokenizer_that_leaves_out_its_own_tokens_is_told(tmp_path: Path) -> None:
    own: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "cls_token": "<s>",
        "sep_token": "</s>",
    }
    tokenizer = byte_pairs()
    tokenizer.post_processor = around(["<s>"], [], tokenizer)
    lines: list[str] = []
    check_ends(tokenizer, settings_of(tmp_path, **own), "mean", lines.append)
    (line,) = lines
    assert line == "warning: tokenizer.json does not put its sep_token '</s>' around a text"


def test_a_last_token_that_is_no_end_token_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    tokenizer = byte_pairs()
    check_ends(tokenizer, settings_of(tmp_path, "qwen3"), "last_token", lines.append)
    (line,) = lines
    assert line.startswith("warning: a text's vector is that of its last token, and tokenizer.json")
    tokenizer.post_processor = around([], ["<|end|>"], tokenizer)
    check_ends(tokenizer, settings_of(tmp_path, "qwen3"), "last_token", lines.append)
    assert len(lines) == 1


def test_a_llama_without_a_first_token_is_told_unless_the_folder_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    settings = settings_of(tmp_path, "mistral", **MISTRAL)
    check_ends(byte_pairs(), settings, "mean", lines.append)
    (line,) = lines
    assert "puts nothing in front of a text, as LlamaTokenizer often does" in line
    settings = settings_of(tmp_path, "mistral", **MISTRAL, add_bos_token=False)
    check_ends(byte_pairs(), settings, "mean", lines.append)
    assert len(lines) == 1
