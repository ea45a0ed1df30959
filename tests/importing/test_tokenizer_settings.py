"""What a folder says of its tokenizer, and what of it cannot be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.errors import ImportRefused
from server.importing.tokenizer_settings import read_settings
from tests.importing.tokenizers import settings_of


@pytest.mark.parametrize(
    ("named", "architecture", "found"),
    [
        ("BertTokenizerFast", "bert", "BertTokenizer"),
        ("PreTrainedTokenizerFast", "bert", "PreTrainedTokenizerFast"),
        (None, "bert", "BertTokenizer"),
        (None, "qwen3", "TokenizersBackend"),
        ("BertTokenizer", "modernbert", "TokenizersBackend"),  # as transformers 5 takes it
    ],
)
def test_the_class_is_the_named_one_or_the_architectures(
    tmp_path: Path, named: str | None, architecture: str, found: str
) -> None:
    named_so: dict[str, Any] = {} if named is None else {"tokenizer_class": named}
    assert settings_of(tmp_path, architecture, **named_so).tokenizer_class == found


def test_a_folder_without_any_of_the_files_says_nothing(tmp_path: Path) -> None:
    settings = read_settings(tmp_path, {"model_type": "bert"})
    assert settings.flag("add_eos_token") is None
    assert settings.token("eos_token") is None
    assert (settings.added, settings.chat_template) == ({}, False)


def test_the_older_files_are_read_where_the_newer_list_is_missing(tmp_path: Path) -> None:
    older = {
        "special_tokens_map.json": {"eos_token": {"content": "</s>", "lstrip": False}},
        "added_tokens.json": {"[NEW]": 7},
    }
    settings = settings_of(tmp_path, other=older, eos_token="<eos>")
    assert settings.token("eos_token") == "</s>"
    assert settings.added == {7: {"content": "[NEW]"}}
    newer = {"9": {"content": "[OTHER]", "special": True}}
    settings = settings_of(tmp_path, other=older, eos_token="<eos>", added_tokens_decoder=newer)
    assert settings.token("eos_token") == "<eos>"
    assert settings.added == {9: {"content": "[OTHER]", "special": True}}


@pytest.mark.parametrize("name", ["tokenizer_args", "processor_kwargs"])
def test_what_sentence_transformers_passes_to_the_tokenizer_comes_first(
    tmp_path: Path, name: str
) -> None:
    other = {"sentence_bert_config.json": {name: {"add_eos_token": True}}}
    assert settings_of(tmp_path, other=other, add_eos_token=False).flag("add_eos_token") is True


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer is none of those"),
        (
            {"truncation_side": "left"},
            "truncation_side is left: texts that are too long would lose",
        ),
        ({"split_special_tokens": True}, "split_special_tokens = true is not supported"),
        ({"post_processor": {"type": "Template"}}, "has a post_processor of its own"),
        ({"added_tokens_decoder": {"a": {"content": "x"}}}, "added tokens must be tokens by their"),
        ({"added_tokens_decoder": ["x"]}, "added tokens must be tokens by their ids"),
    ],
)
def test_what_tokenizer_json_cannot_do_is_refused(
    tmp_path: Path, own: dict[str, Any], said: str
) -> None:
    with pytest.raises(ImportRefused) as refused:
        settings_of(tmp_path, **own)
    assert refused.value.message.startswith(f"{tmp_path / 'tokenizer_config.json'}: ")
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"modality_config": {"text": {}, "message": {}}}, "texts go through a chat template"),
        ({"processing_kwargs": {"text": {"add_special_tokens": False}}}, "has add_special_tokens"),
        ({"query_expansion": {"length": 32}}, "query_expansion is not supported"),
        ({"config_args": {"hidden_act": "relu"}}, "config_args changes hidden_act of config.json"),
        ({"config_kwargs": {"a": 1, "b": 2}}, "config_kwargs changes a, b of config.json"),
        ({"processor_kwargs": {"model_max_length": 9}}, "say it in max_seq_length"),
        (
            {"tokenizer_args": {"model_max_length": 9}, "max_seq_length": 10},
            "tokenizer_args has model_max_length; say it in max_seq_length",
        ),
        ({"config_args": 5}, "config_args must be settings by name"),
        ({"processing_kwargs": {"text": 5}}, "processing_kwargs.text must be settings by name"),
        ({"tokenizer_args": ["add_eos_token"]}, "tokenizer_args must be settings by name"),
    ],
)
def test_what_sentence_transformers_would_do_to_a_text_first_is_refused(
    tmp_path: Path, content: dict[str, Any], said: str
) -> None:
    with pytest.raises(ImportRefused, match=said):
        settings_of(tmp_path, other={"sentence_bert_config.json": content})


def test_what_does_not_change_a_texts_vector_is_let_by(tmp_path: Path) -> None:
    content: dict[str, Any] = {"modality_config": {"text": {}}, "max_seq_length": 9}
    content |= {"processing_kwargs": {"text": {"padding": True}}}
    content |= {
        "tokenizer_args": {"model_max_length": 9},
        "config_args": {"trust_remote_code": True},
    }
    other = {"sentence_bert_config.json": content}
    settings = settings_of(tmp_path, other=other, padding_side="left", chat_template="{{ x }}")
    assert settings.chat_template


def test_a_switch_is_true_or_false(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, add_eos_token="yes", add_bos_token=None)
    assert settings.flag("add_bos_token") is None
    with pytest.raises(ImportRefused, match="add_eos_token must be true or false"):
        settings.flag("add_eos_token")
