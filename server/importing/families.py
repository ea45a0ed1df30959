"""What is published about known models and not written in their folders.

Sizes for which a model was trained to be cut (Matryoshka), the prompts that its model card asks for,
and how it is pooled and normalised, for folders that were copied without `modules.json`. What a
folder says itself comes first. Each entry names its source, a repository on the Hugging Face hub:
sizes and prompts are its card's, pooling and normalisation those of its `1_Pooling/config.json` and
`modules.json`. What is not known of a family is left out. Pure data; any thread may read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.catalog.card import PoolingMode

_RETRIEVAL = "Represent this sentence for searching relevant passages: "
_WEB_SEARCH = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)


@dataclass(frozen=True, slots=True)
class Family:
    """Models whose name (without the organisation) matches `pattern`."""

    pattern: str
    source: str
    dimensions: tuple[int, ...] = ()  # trained prefixes, the native size left out
    layer_norm: bool = False  # before the cut
    prompts: Mapping[str, str] = field(default_factory=dict)
    pooling: PoolingMode | None = None
    normalize: bool | None = None
    dense: bool = False  # it has dense layers behind the pooling, which only modules.json names

    @property
    def cited(self) -> str:
        """Where a fact that is not the folder's own comes from."""
        return f"table of families, from {self.source}"


FAMILIES = (
    Family(
        r"nomic-embed-text-v1\.5",
        "nomic-ai/nomic-embed-text-v1.5",
        dimensions=(512, 256, 128, 64),
        layer_norm=True,
        prompts={"query": "search_query: ", "document": "search_document: "},
        pooling="mean",
        normalize=False,
    ),
    Family(
        r"nomic-embed-text-v1",
        "nomic-ai/nomic-embed-text-v1",
        prompts={"query": "search_query: ", "document": "search_document: "},
        pooling="mean",
        normalize=True,
    ),
    Family(
        r"modernbert-embed-(base|large)",
        "nomic-ai/modernbert-embed-base",
        dimensions=(256,),
        prompts={"query": "search_query: ", "document": "search_document: "},
        pooling="mean",
        normalize=True,
    ),
    Family(
        r"qwen3-embedding-(0\.6b|4b|8b)",
        "Qwen/Qwen3-Embedding-0.6B",
        dimensions=(2048, 1024, 768, 512, 256, 128, 64, 32),
        prompts={"query": _WEB_SEARCH},
        pooling="last_token",
        normalize=True,
    ),
    Family(
        r"embeddinggemma-300m.*",
        "google/embeddinggemma-300m",
        dimensions=(512, 256, 128),
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
        pooling="mean",
        normalize=True,
        dense=True,
    ),
    Family(
        r"mxbai-embed-large-v1",
        "mixedbread-ai/mxbai-embed-large-v1",
        dimensions=(512,),
        prompts={"query": _RETRIEVAL},
        pooling="cls",
        normalize=False,
    ),
    Family(
        r"mxbai-embed-(xsmall|2d-large)-v1",
        "mixedbread-ai/mxbai-embed-xsmall-v1",
        prompts={"query": _RETRIEVAL},
    ),
    Family(
        r"snowflake-arctic-embed-m-v1\.5",
        "Snowflake/snowflake-arctic-embed-m-v1.5",
        dimensions=(256,),
        prompts={"query": _RETRIEVAL},
        pooling="cls",
        normalize=True,
    ),
    Family(
        r"snowflake-arctic-embed-[ml]-v2\.0",
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        dimensions=(256,),
        prompts={"query": "query: "},
        pooling="cls",
        normalize=True,
    ),
    Family(
        r"snowflake-arctic-embed-(xs|s|m|m-long|l)",
        "Snowflake/snowflake-arctic-embed-l",
        prompts={"query": _RETRIEVAL},
        pooling="cls",
        normalize=True,
    ),
    Family(
        r"multilingual-e5-large-instruct",
        "intfloat/multilingual-e5-large-instruct",
        prompts={"query": _WEB_SEARCH + " "},
        pooling="mean",
        normalize=True,
    ),
    Family(
        r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?",
        "intfloat/e5-base-v2",
        prompts={"query": "query: ", "document": "passage: "},
        pooling="mean",
        normalize=True,
    ),
    Family(
        r"bge-(small|base|large)-en(-v1\.5)?",
        "BAAI/bge-base-en-v1.5",
        prompts={"query": _RETRIEVAL},
        pooling="cls",
        normalize=True,
    ),
    Family(
        r"bge-(small|base|large)-zh(-v1\.5)?",
        "BAAI/bge-base-zh-v1.5",
        pooling="cls",
        normalize=True,
    ),
    Family(
        r"bge-m3",
        "BAAI/bge-m3",
        pooling="cls",
        normalize=True,
    ),
    Family(
        r"gte-(small|base|large)",
        "thenlper/gte-base",
        pooling="mean",
        normalize=True,
    ),
    Family(
        r"gte-(small|base|large)-zh",
        "thenlper/gte-base-zh",
        pooling="cls",
        normalize=True,
    ),
    Family(
        r"gte-multilingual-base",
        "Alibaba-NLP/gte-multilingual-base",
        pooling="cls",
        normalize=True,
    ),
    Family(
        r"gte-modernbert-base",
        "Alibaba-NLP/gte-modernbert-base",
        pooling="cls",
        normalize=False,
    ),
    Family(
        r"gist-(small-|large-)?embedding-v0",
        "avsolatorio/GIST-Embedding-v0",
        pooling="cls",
        normalize=True,
    ),
    Family(
        r"uae-large-v1",
        "WhereIsAI/UAE-Large-V1",
        pooling="cls",
        normalize=False,
    ),
    Family(
        r"m3e-(small|base)",
        "moka-ai/m3e-base",
        pooling="mean",
        normalize=False,
    ),
    Family(
        r"all-(minilm-l(6|12)|mpnet-base)-v[12]|all-(distilroberta|roberta-large)-v1",
        "sentence-transformers/all-MiniLM-L6-v2",
        pooling="mean",
        normalize=True,
    ),
    Family(
        r"paraphrase-(minilm-l(3|6|12)|mpnet-base|distilroberta-base|tinybert-l6|albert-small)-v2",
        "sentence-transformers/paraphrase-mpnet-base-v2",
        pooling="mean",
        normalize=False,
    ),
    Family(
        r"paraphrase-multilingual-(minilm-l12|mpnet-base)-v2",
        "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
        pooling="mean",
        normalize=False,
    ),
    Family(
        r"multi-qa-(minilm-l6|distilbert|mpnet-base)-cos-v1",
        "sentence-transformers/multi-qa-mpnet-base-cos-v1",
        pooling="mean",
        normalize=True,
    ),
    Family(
        r"multi-qa-(minilm-l6|distilbert|mpnet-base)-dot-v1",
        "sentence-transformers/multi-qa-mpnet-base-dot-v1",
        pooling="cls",
        normalize=False,
    ),
    Family(
        r"labse",
        "sentence-transformers/LaBSE",
        pooling="cls",
        normalize=True,
        dense=True,
    ),
    Family(
        r"(sentence|gtr)-t5-(base|large|xl|xxl)",
        "sentence-transformers/sentence-t5-base",
        pooling="mean",
        normalize=True,
        dense=True,
    ),
    Family(
        r"distiluse-base-multilingual-cased-v[12]",
        "sentence-transformers/distiluse-base-multilingual-cased-v2",
        pooling="mean",
        normalize=False,
        dense=True,
    ),
)


def find_family(names: tuple[str, ...]) -> Family | None:
    """The family that one of these names belongs to; an organisation in front is ignored."""
    for name in names:
        bare = name.rstrip("/").rsplit("/", 1)[-1]
        for family in FAMILIES:
            if re.fullmatch(family.pattern, bare, re.IGNORECASE):
                return family
    return None
