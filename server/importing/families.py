"""What is published about known models and not written in their folders.

Sizes for which a model was trained to be cut (Matryoshka), and the prompts that its model card asks
for. A folder's own prompts come first. Each entry names its source, a model card on the Hugging
Face hub. Pure data; any thread may read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.catalog.card import PoolingMode
from server.catalog.names import Purpose

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
    prompts: Mapping[Purpose, str] = field(default_factory=dict)
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
    ),
    Family(
        r"nomic-embed-text-v1",
        "nomic-ai/nomic-embed-text-v1",
        prompts={"query": "search_query: ", "document": "search_document: "},
    ),
    Family(
        r"modernbert-embed-(base|large)",
        "nomic-ai/modernbert-embed-base",
        dimensions=(256,),
        prompts={"query": "search_query: ", "document": "search_document: "},
    ),
    Family(
        r"qwen3-embedding-.*",
        "Qwen/Qwen3-Embedding-0.6B",
        dimensions=(2048, 1024, 768, 512, 256, 128, 64, 32),
        prompts={"query": _WEB_SEARCH},
    ),
    Family(
        r"embeddinggemma-300m.*",
        "google/embeddinggemma-300m",
        dimensions=(512, 256, 128),
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    Family(
        r"mxbai-embed-large-v1",
        "mixedbread-ai/mxbai-embed-large-v1",
        dimensions=(512,),
        prompts={"query": _RETRIEVAL},
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
    ),
    Family(
        r"snowflake-arctic-embed-[ml]-v2\.0",
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        dimensions=(256,),
        prompts={"query": "query: "},
    ),
    Family(
        r"snowflake-arctic-embed-(xs|s|m|m-long|l)",
        "Snowflake/snowflake-arctic-embed-l",
        prompts={"query": _RETRIEVAL},
    ),
    Family(
        r"multilingual-e5-large-instruct",
        "intfloat/multilingual-e5-large-instruct",
        prompts={"query": _WEB_SEARCH + " "},
    ),
    Family(
        r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?",
        "intfloat/e5-base-v2",
        prompts={"query": "query: ", "document": "passage: "},
    ),
    Family(
        r"bge-(small|base|large)-en(-v1\.5)?",
        "BAAI/bge-base-en-v1.5",
        prompts={"query": _RETRIEVAL},
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
