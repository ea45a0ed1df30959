"""Where texts are cut, who said so, and that there are positions up to there."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import ImportRefused
from server.importing.input_length import InputLength, Said, choose_length, count_positions


def choose(
    config: dict[str, Any], own: object = None, tokenizer: object = None, wished: int | None = None
) -> InputLength:
    return choose_length(
        "folder",
        count_positions(config),
        wished,
        sentence_bert=Said(own, "sentence_bert_config.json"),
        tokenizer=Said(tokenizer, "tokenizer_config.json"),
        config_file="config.json",
    )


BERT = {"model_type": "bert", "max_position_embeddings": 512}
ROBERTA = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}


@pytest.mark.parametrize(
    ("config", "own", "tokenizer", "tokens", "file"),
    [
        (BERT, 256, 512, 256, "sentence_bert_config.json"),
        (BERT, None, 128, 128, "tokenizer_config.json"),
        (BERT, None, 10**30, 512, "config.json"),
        (ROBERTA, 512, None, 512, "sentence_bert_config.json"),
        (ROBERTA, None, None, 512, "config.json"),
        (ROBERTA, None, 512, 512, "config.json"),
        ({**ROBERTA, "pad_token_id": 0}, None, None, 513, "config.json"),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, None, None, 512, "config.json"),
        ({**ROBERTA, "model_type": "mpnet", "pad_token_id": 5}, None, None, 512, "config.json"),
        ({"model_type": "t5"}, None, 512, 512, "tokenizer_config.json"),
    ],
)
def test_a_text_may_have_as_many_tokens_as_the_folder_says_and_positions_reach(
    config: dict[str, Any], own: object, tokenizer: object, tokens: int, file: str
) -> None:
    length = choose(config, own, tokenizer)
    assert (length.tokens, length.told.source) == (tokens, file)
    assert length.told.value == f"{tokens} tokens"


def test_sentence_transformers_would_take_the_rows_without_tokens_for_positions() -> None:
    assert not choose(ROBERTA).is_own
    assert choose(ROBERTA, 512).is_own
    assert choose(BERT).is_own


def test_a_setting_that_counts_rows_without_tokens_is_cut_and_told() -> None:
    length = choose(ROBERTA, 514)
    assert (length.tokens, length.is_own) == (512, False)
    assert length.told.source == (
        "config.json; sentence_bert_config.json says 514, but the first 2 of 514 positions are not "
        "for tokens"
    )


@pytest.mark.parametrize("wished", [1, 128, 512])
def test_a_person_may_have_texts_cut_anywhere_within_the_positions(wished: int) -> None:
    for config in (BERT, ROBERTA):
        length = choose(config, 256, wished=wished)
        assert (length.tokens, length.told.source) == (wished, "--max-input-tokens")
        assert not length.is_own


def test_a_person_may_say_what_the_folder_does_not() -> None:
    assert choose({"model_type": "t5"}, wished=700).tokens == 700
    with pytest.raises(ImportRefused, match=r"says nowhere .* --max-input-tokens says it"):
        choose({"model_type": "t5"}, None, 10**30)


@pytest.mark.parametrize(("config", "own"), [(BERT, 256), (ROBERTA, 514)])
def test_more_tokens_than_positions_are_refused(config: dict[str, Any], own: int) -> None:
    with pytest.raises(
        ImportRefused, match=r"--max-input-tokens 513: the model has positions for 512 tokens"
    ):
        choose(config, own, wished=513)


def test_positions_that_are_computed_reach_as_far_as_the_folder_goes() -> None:
    """nomic-embed-text-v1.5 was trained with 2,048 and reads 8,192."""
    config = {"model_type": "nomic_bert", "max_position_embeddings": 2048}
    assert choose(config, 8192, wished=8192).tokens == 8192
    assert choose(config, 8192).tokens == 8192
