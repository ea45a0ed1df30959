"""What graphs take and give, whatever computes them.

Pure; any thread may call.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.errors import ModelLoadError

OWN_OUTPUT = "embeddings"  # of graphs with all that makes the vector inside
# What publishers' graphs give, the most finished first: sentence-transformers' and transformers'.
TOKEN_OUTPUTS = ("token_embeddings", "last_hidden_state")
_OUTPUTS = (OWN_OUTPUT, "sentence_embedding", *TOKEN_OUTPUTS)
INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS = "input_ids", "attention_mask", "token_type_ids"
_INPUTS = frozenset({INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS})


def feeds_of(
    inputs: Collection[str], input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """What a graph with these inputs is fed, by name; all texts are of one type.

    Args:
        input_ids, attention_mask: both (texts, num_tokens); see `pad`.
    """
    feeds = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
    if TOKEN_TYPE_IDS in inputs:
        feeds[TOKEN_TYPE_IDS] = np.zeros_like(input_ids)
    return feeds


def choose_output(graph: Path, inputs: Collection[str], outputs: Collection[str]) -> str:
    """The output that is nearest to a finished vector.

    Args:
        inputs, outputs: the names that the graph has.

    Raises:
        ModelLoadError: it wants or gives something else than what is known here.
    """
    if unknown := set(inputs) - _INPUTS:
        raise ModelLoadError(f"graph {graph}: wants {min(unknown)}, which is not supported")
    known = [name for name in _OUTPUTS if name in outputs]
    if not known:
        raise ModelLoadError(f"graph {graph}: gives none of {', '.join(_OUTPUTS)}")
    return known[0]
