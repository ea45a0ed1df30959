"""A family is known by its models' names, and by nothing that only contains one."""

from __future__ import annotations

import pytest

from server.importing.families import FAMILIES, find_family


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (("nomic-ai/nomic-embed-text-v1.5",), "nomic-ai/nomic-embed-text-v1.5"),
        (("mine", "somebody/BGE-Small-en"), "BAAI/bge-base-en-v1.5"),
        (("e5-large-v2/",), "intfloat/e5-base-v2"),
        (("nomic-embed-text-v1.5-finetuned",), None),
        (("nomic-embed-text-v1x5",), None),
        (("all-MiniLM-L6-v2", ""), "sentence-transformers/all-MiniLM-L6-v2"),
        (("all-MiniLM-L6-v3", ""), None),
        (("Qwen3-Embedding-0.6B-mine",), None),
        (("thenlper/gte-large-zh",), "thenlper/gte-base-zh"),
    ],
)
def test_a_family_is_found_by_any_of_a_models_names(
    names: tuple[str, ...], source: str | None
) -> None:
    family = find_family(names)
    assert (family.source if family else None) == source


@pytest.mark.parametrize(
    ("name", "pooling", "normalize"),
    [
        ("BAAI/bge-large-en-v1.5", "cls", True),
        ("BAAI/bge-m3", "cls", True),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "cls", True),
        ("mixedbread-ai/mxbai-embed-large-v1", "cls", False),
        ("Alibaba-NLP/gte-modernbert-base", "cls", False),
        ("thenlper/gte-base", "mean", True),
        ("intfloat/multilingual-e5-large-instruct", "mean", True),
        ("nomic-ai/nomic-embed-text-v1", "mean", True),
        ("nomic-ai/nomic-embed-text-v1.5", "mean", False),
        ("Qwen/Qwen3-Embedding-8B", "last_token", True),
        ("sentence-transformers/all-mpnet-base-v2", "mean", True),
        ("sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", "mean", False),
        ("sentence-transformers/multi-qa-mpnet-base-dot-v1", "cls", False),
        ("mixedbread-ai/mxbai-embed-xsmall-v1", None, None),
    ],
)
def test_the_published_pooling_and_normalisation_are_known(
    name: str, pooling: str | None, normalize: bool | None
) -> None:
    family = find_family((name,))
    assert family is not None
    assert (family.pooling, family.normalize) == (pooling, normalize)
    assert not family.dense


@pytest.mark.parametrize(
    "name", ["embeddinggemma-300m", "LaBSE", "gtr-t5-base", "distiluse-base-multilingual-cased-v2"]
)
def test_families_with_dense_layers_are_known(name: str) -> None:
    family = find_family((name,))
    assert family is not None
    assert family.dense


def test_pooling_and_normalisation_are_known_together_or_not_at_all() -> None:
    for family in FAMILIES:
        assert (family.pooling is None) == (family.normalize is None), family.source
