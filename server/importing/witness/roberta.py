"""RoBERTa and its descendants XLM-RoBERTa and CamemBERT: BERT with other positions.

Liu et al., RoBERTa (2019); Conneau et al., XLM-R (2019); Martin et al., CamemBERT (2019). As in
fairseq, in which they were trained, the first token's position is the padding's id plus one, and a
padding token in a text has the padding's id and is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.importing.witness import bert
from server.importing.witness.formulas import Floats
from server.importing.witness.settings import count
from server.importing.witness.tensors import Tensors


def forward(
    config: Mapping[str, Any], tensors: Tensors, texts: Sequence[NDArray[np.int64]]
) -> list[Floats]:
    """Token vectors (tokens, hidden_size) of each text's token ids; see `bert.forward`."""
    padding = count(config, "pad_token_id", least=0)
    return bert.encode(config, tensors, texts, [positions(text, padding) for text in texts])


def positions(text: NDArray[np.int64], padding: int) -> NDArray[np.int64]:
    """The position of each token, (tokens,)."""
    counted = text != padding
    return np.where(counted, np.cumsum(counted) + padding, padding)
