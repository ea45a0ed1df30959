"""From a card to something that computes.

Reads files, checks their bytes, knows nothing of queues, HTTP or keys. Any thread may call.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from server.catalog.card import Card
from server.catalog.verify import check_files
from server.errors import ModelLoadError, first_line
from server.inference.backend import Backend, Capacity, LoadOptions
from server.inference.placement import ON_CPU, Placement
from server.inference.tokenizer import Tokenizer, use_all_cores

log = logging.getLogger(__name__)

# float32 rounding of a 384 x 384 product stays well below this.
_ORTHOGONALITY_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Encoder:
    """What turns text into vectors: shared by all cards with the same base."""

    tokenizer: Tokenizer
    backends: tuple[Backend, ...]  # one a device, all computing the same
    embedding_dim: int
    capacity: Capacity | None = None  # of the devices; None: CPU cores, which are not measured
    # Token ids from this one on are the tokenizer's only: the weights hold no vector for them.
    # None: there are no such ids.
    num_embeddings: int | None = None


def load_encoder(
    card: Card,
    placement: Placement = ON_CPU,
    options: LoadOptions | None = None,
    *,
    hash_files: bool = True,
) -> Encoder:
    """Tokenizer and forward passes of a card that has no base.

    Args:
        placement: where it is computed, and in which numbers.
        hash_files: compare every byte with the card.

    Raises:
        ModelFileError: a file's sha256 differs from the card.
        ModelLoadError: a file cannot be used, or the graph gives another size than the card.
    """
    choice = placement.backend_for(card)
    if placement.on_cpu != choice.on_cpu:
        log.warning(
            "model %s is computed on the CPU: its card has no [torch] table (import it again)",
            card.name,
        )
    if choice.instead_of is not None:
        log.warning(
            "model %s is computed in %s, not in %s, since that is not for %s; its fingerprint tells",
            card.name,
            choice.card.dtype,
            choice.instead_of,
            placement.slowest,
        )
    with ThreadPoolExecutor(max_workers=1) as hashing:
        # At the same time, on another core.
        checked = hashing.submit(check_files, card) if hash_files else None
        try:
            tokenizer = Tokenizer.of(card)
            if not choice.on_cpu:
                use_all_cores()
            backends, capacity = choice.kind.load(
                choice.card, choice.devices, options or LoadOptions()
            )
            vector = _first_pass(card, backends[0])
        finally:
            if checked:
                checked.result()  # wrong bytes are the better explanation
    if vector.shape != (1, card.embedding_dim):
        raise ModelLoadError(
            f"model {card.name}: the graph gives vectors of {vector.shape[-1]} dimensions, the card "
            f"says {card.embedding_dim}"
        )
    vocabulary_size = tokenizer.vocabulary_size
    known = min(backend.count_embeddings(vocabulary_size) for backend in backends)
    num_embeddings = known if known < vocabulary_size else None
    return Encoder(tokenizer, backends, card.embedding_dim, capacity, num_embeddings)


def _first_pass(card: Card, backend: Backend) -> NDArray[np.float32]:
    try:
        return backend.forward([np.zeros(1, np.int32)])
    except Exception as error:  # a graph may fail in any way
        reason = first_line(error)
        raise ModelLoadError(f"model {card.name}: the graph cannot compute: {reason}") from error


def load_rotation(card: Card, *, hash_files: bool = True) -> NDArray[np.float32] | None:
    """The card's Matryoshka rotation, (embedding_dim, embedding_dim), or None if it has none.

    Args:
        hash_files: compare every byte with the card.

    Raises:
        ModelFileError: the file's sha256 differs from the card.
        ModelLoadError: it holds no orthogonal matrix of the right size.
    """
    if card.matryoshka is None or card.matryoshka.rotation is None:
        return None
    if hash_files:
        check_files(card)
    path = card.path(card.matryoshka.rotation)
    try:
        rotation = load_file(path).get("rotation")
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"rotation {path}: {error}") from error
    size = (card.embedding_dim, card.embedding_dim)
    if rotation is None or rotation.shape != size or rotation.dtype != np.float32:
        raise ModelLoadError(f"{path}: holds no float32 tensor `rotation` of shape {size}")
    if np.abs(rotation.T @ rotation - np.eye(size[0])).max() > _ORTHOGONALITY_TOLERANCE:
        raise ModelLoadError(f"{path}: the rotation is not orthogonal")
    return rotation
