"""The proofs of an import: the model computes, and its vectors are the publisher's.

Each is compared with another implementation of the same model: the graph with sentence-transformers
(and whatever else gives vectors for texts), torch's dtypes with the graph. Torch is needed only for
these comparisons. Any thread may call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card, Parity, TorchDense, TorchModel
from server.errors import ImportRefused, first_line
from server.importing import packages
from server.importing.build import MAX_COMPARED_TOKENS
from server.importing.company import check_vectors
from server.importing.folder import CONFIG_FILE, ModelFolder
from server.importing.proof_texts import (
    HALF_PRECISION_TEXTS,
    LONGEST_TEXT,
    PARITY_TEXTS,
    REFERENCE_TEXTS,
)
from server.importing.refusing import refusing
from server.importing.special_tokens import check_embeddings
from server.inference import direct, least_cosines
from server.inference.agreement import agreement_of
from server.inference.loader import Encoder
from server.program.command_lines import install_command


class Implementation(Protocol):
    """Another way to compute a folder's model; `name` says in a card which one it was."""

    name: str

    def embed(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        """Vectors (texts, embedding_dim), float32, each behind the prompt; long texts are cut."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two implementations of one model are from each other."""

    texts: int
    min_cosine: float  # NaN if a vector is not finite
    max_difference: float
    worst: str  # the text whose vectors are furthest from each other


def prove_it_computes(
    folder: ModelFolder, encoder: Encoder, report: Callable[[str], None]
) -> NDArray[np.float32]:
    """Short texts and the longest one; what the tokenizer knows and the weights do not is told.

    Returns:
        The vectors of REFERENCE_TEXTS, (texts, embedding_dim), float32.

    Raises:
        ImportRefused: a text cannot be computed, or vectors have not the length they should.
    """
    check_embeddings(folder, encoder, report)
    with refusing(f"{folder.path}: the graph cannot compute"):
        reference = direct.embed_texts(encoder, REFERENCE_TEXTS)
        check_vectors(folder, REFERENCE_TEXTS, reference)
    if folder.head.normalize and not np.allclose(np.linalg.norm(reference, axis=1), 1, atol=1e-3):
        raise ImportRefused(
            f"{folder.path}: its vectors are to be normalised, but the graph's have other lengths "
            "than 1"
        )
    with refusing(
        f"{folder.path}: a text of {encoder.tokenizer.max_input_tokens} tokens cannot be computed; "
        f"--max-input-tokens may say less than {folder.max_input_tokens}"
    ):
        longest = direct.embed_texts(encoder, [LONGEST_TEXT])
        check_vectors(folder, [LONGEST_TEXT], longest)
    return reference


def prove_parity(
    folder: ModelFolder,
    encoder: Encoder,
    prompts: Iterable[str],
    report: Callable[[str], None],
    *,
    force: bool,
    briefly: Iterable[str] = (),
) -> Parity | None:
    """Compare with sentence-transformers, with every prompt; None if that cannot be.

    Args:
        force: warn where the vectors differ too much.
        briefly: see `compare`.

    Raises:
        ImportRefused: they do, or sentence-transformers cannot compute the model.
    """
    if folder.not_stock:
        report(
            "warning: the publisher's graph was compared with nothing: sentence-transformers makes "
            "another model of this folder"
        )
        return None
    if not folder.weights or not packages.is_installed("sentence_transformers"):
        if folder.weights:
            package = install_command("torch")
            report(f"not compared with sentence-transformers, which needs its package: {package}")
        else:
            report(
                "warning: the publisher's graph was compared with nothing: the folder has no "
                "safetensors weights"
            )
        return None
    from server.importing import torch_reference

    report(f"comparing with {torch_reference.NAME}")
    reference = torch_reference.TorchReference(folder, MAX_COMPARED_TOKENS)
    found = compare(folder, encoder, reference, prompts, briefly)
    report(
        f"{found.texts} texts: smallest cosine {found.min_cosine:.7f}, "
        f"largest difference {found.max_difference:.1e}"
    )
    if not found.min_cosine >= least_cosines.IMPORT:
        refusal = (
            f"{folder.path}: cosine {found.min_cosine:.5f} with {reference.name}, at least "
            f"{least_cosines.IMPORT} is needed (worst: {found.worst[:40]!r})"
        )
        if not math.isfinite(found.min_cosine):
            raise ImportRefused(refusal)
        if not force:
            raise ImportRefused(f"{refusal}; --force imports it all the same")
        report(f"warning: {refusal}")
    return Parity(
        against=reference.name,
        texts=found.texts,
        min_cosine=round(found.min_cosine, 7),
        max_difference=float(f"{found.max_difference:.2g}"),
    )


def prove_dtypes(
    folder: ModelFolder, card: Card, encoder: Encoder, report: Callable[[str], None]
) -> Card:
    """The card with what a GPU needs, if torch is here to try it."""
    if CONFIG_FILE not in card.files or not packages.is_installed("transformers"):
        return card
    from server.importing.torch_precision import try_dtypes

    try:
        untried = TorchModel(
            config=CONFIG_FILE,
            weights=folder.transformer_weights,
            dense=tuple(
                TorchDense(weights=layer.weights, activation=layer.activation)
                for layer in folder.head.dense
            ),
            packed=False,
            dtype="float32",
        )
        tried = try_dtypes(
            card.changed(torch=untried),
            encoder.tokenizer,
            HALF_PRECISION_TEXTS,
            direct.embed_texts(encoder, HALF_PRECISION_TEXTS),
            trained_in=str(folder.config.get("dtype") or folder.config.get("torch_dtype")),
            report=report,
        )
    except Exception as error:  # the model is whole without it
        report(f"on the CPU only: {first_line(error)}")
        return card
    return card.changed(torch=tried)


def compare(
    folder: ModelFolder,
    encoder: Encoder,
    other: Implementation,
    prompts: Iterable[str],
    briefly: Iterable[str] = (),
) -> Comparison:
    """The vectors of PARITY_TEXTS, without a prompt and behind each of them.

    Args:
        briefly: prompts behind which REFERENCE_TEXTS suffice, since there may be many.

    Raises:
        ImportRefused: one side cannot compute a text, or gives vectors of another size.
    """
    both: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    compared: list[str] = []
    behind: dict[str, Sequence[str]] = dict.fromkeys(briefly, REFERENCE_TEXTS)
    for prompt, texts in (behind | dict.fromkeys(("", *prompts), PARITY_TEXTS)).items():
        with refusing(f"{folder.path}: cannot compute with the prompt {prompt!r}"):
            ours = direct.embed_texts(encoder, texts, prompt)
            check_vectors(folder, texts, ours)
            theirs = other.embed(texts, prompt)
        if ours.shape != theirs.shape:
            raise ImportRefused(
                f"{folder.path}: vectors of {ours.shape[1]} dimensions, but "
                f"{theirs.shape[1]} with sentence-transformers"
            )
        both.append((ours, theirs))
        compared += texts
    found = agreement_of(*map(np.concatenate, zip(*both, strict=True)))
    return Comparison(
        texts=found.texts,
        min_cosine=found.min_cosine,
        max_difference=found.max_difference,
        worst=compared[found.worst],
    )
