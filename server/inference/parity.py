"""Whether this machine computes what a model's card vouches for.

Servers behind one balancer answer alike only if their processors do. Any thread may call.
"""

from __future__ import annotations

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from server.catalog.card import Card
from server.errors import ModelLoadError
from server.inference.direct import embed_texts, tokenize
from server.inference.loader import Encoder
from server.inference.pooling import cosines


def reference_cosine(encoder: Encoder, card: Card) -> float | None:
    """Smallest cosine between the card's reference vectors and those computed here.

    Of all devices that compute for the encoder; None if the card has no reference.

    Raises:
        ModelLoadError: the stored vectors cannot be compared.
    """
    reference = card.reference
    if reference is None:
        return None
    path = card.path(reference.file)
    try:
        stored = load_file(path)["embeddings"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelLoadError(f"reference vectors {path}: {error}") from error
    lowest = []
    for backend in encoder.backends:
        found = embed_texts(encoder, reference.texts, backend=backend)
        if stored.shape != found.shape:
            raise ModelLoadError(
                f"reference vectors {path} have the shape {stored.shape}, computed ones "
                f"{found.shape}"
            )
        lowest.append(float(np.min(cosines(found, stored))))  # NaN stays NaN
    return float(np.min(lowest))


def check_range(encoder: Encoder, card: Card) -> None:
    """Refuse to serve a model whose numbers overflow on the card's reference texts.

    Each text is tried, and all of them again and again as one that is as long as the model reads:
    how wide a model's numbers get depends on real texts and their beginnings, which random tokens
    do not have.

    Raises:
        ModelLoadError: a vector is not finite.
    """
    if card.reference is None:
        return
    texts = card.reference.texts
    tokens = len(tokenize(encoder.tokenizer, [" ".join(texts)])[0])
    longest = " ".join(texts * (1 + 2 * card.max_input_tokens // tokens))
    for backend in encoder.backends:
        found = [embed_texts(encoder, some, backend=backend) for some in (texts, [longest])]
        if not np.isfinite(np.concatenate(found)).all():
            raise ModelLoadError(
                f"model {card.name}: {card.dtype} is too narrow for it (numbers overflow on its "
                "reference texts); choose another --dtype"
            )


def check_parity(encoder: Encoder, card: Card, min_cosine: float) -> None:
    """Refuse to serve vectors that are not the card's.

    Raises:
        ModelLoadError: they are further from the reference than `min_cosine`.
    """
    lowest = reference_cosine(encoder, card)
    if lowest is not None and not lowest >= min_cosine:
        raise ModelLoadError(
            f"model {card.name}: this machine computes other vectors than the card's reference "
            f"(cosine {lowest:.6f}, at least {min_cosine} is needed; setting min_parity)"
        )
