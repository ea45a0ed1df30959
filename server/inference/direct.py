"""Texts to vectors without an engine: for proofs, where nobody else waits.

Any thread may call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.inference.backend import Backend, TokenIds
from server.inference.inputs import TextInputs
from server.inference.loader import Encoder
from server.inference.tokenizer import Tokenizer

BATCH_TEXTS = 4  # so that texts of unlike length are together, as under load


def embed_texts(
    encoder: Encoder, texts: Sequence[str], prompt: str = "", *, backend: Backend | None = None
) -> NDArray[np.float32]:
    """Vectors (texts, embedding_dim), float32, in the order given; over-long texts are cut.

    Args:
        backend: the one of the encoder's that computes; by default the first.
    """
    backend = backend or encoder.backends[0]
    sequences = tokenize(encoder.tokenizer, texts, prompt)
    starts = range(0, len(sequences), BATCH_TEXTS)
    return np.concatenate([backend.forward(sequences[i : i + BATCH_TEXTS]) for i in starts])


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], prompt: str = "") -> Sequence[TokenIds]:
    """The tokens of each text, int32; over-long texts are cut."""
    return tokenizer.encode_texts(
        TextInputs(is_list=True, texts=list(texts)),
        prompt=prompt,
        truncate=True,
        max_request_tokens=len(texts) * tokenizer.max_input_tokens,
    )
