"""The proof by a witness that shares nothing with what it is a witness of, and needs no torch.

At an import, and at any time later by `models verify --witness` and `doctor --witness`. Not
thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from server.catalog.card import Parity
from server.errors import ImportRefused, UnknownArithmetic
from server.importing.folder import ModelFolder
from server.importing.proof import Comparison
from server.importing.proof_texts import REFERENCE_TEXTS, WITNESS_TEXTS
from server.importing.refusing import refusing
from server.importing.witness.witness import Witness, lack_of
from server.inference import direct, least_cosines
from server.inference.loader import Encoder
from server.inference.pooling import cosines

# Between a graph and the witness, both in float32, for vectors of length 1. Rounding is 2e-07 in
# all-MiniLM-L6-v2, and at most 4e-06 in the tests' families (T5, which does not scale attention).
MOST_DIFFERENCE = 1e-5


def prove_by_witness(
    folder: ModelFolder,
    encoder: Encoder,
    prompts: Iterable[str],
    parity: Parity | None,
    report: Callable[[str], None],
    *,
    own_graph: bool,
    force: bool,
) -> Parity | None:
    """Compare with the witness, if the family has one, with every prompt.

    Args:
        parity: with sentence-transformers; None if that could not be compared.
        own_graph: made here of the weights, so that rounding alone may differ; a publisher's may
            have been made another way.
        force: warn where the vectors differ too much, or where the config says what the witness
            does not know. It does not get past missing tensors.

    Returns:
        `parity`, or where there is none how far the witness is from the model; None if there is no
        witness either.

    Raises:
        ImportRefused: a tensor is missing, or the vectors differ too much.
    """
    if folder.not_stock:  # nor is the witness of this model, as the comparison before has told
        return parity
    witness = Witness.of_folder(folder)
    others = "sentence-transformers only" if parity else "nothing"
    if witness is None:
        if folder.weights:  # else the comparison before has told
            report(f"{lack_of(folder.architecture)}: compared with {others}")
        return parity
    try:
        found = compare_with_witness(witness, encoder, prompts)
        report(told(witness, found))
        refusal = beyond_rounding(found) if own_graph else _beyond_cosine(found)
        own = Parity(
            against=witness.name,
            texts=found.texts,
            min_cosine=round(found.min_cosine, 7),
            max_difference=float(f"{found.max_difference:.2g}"),
        )
    except UnknownArithmetic as unknown:
        refusal, own = str(unknown), None
    if refusal is not None:
        line = f"{folder.path}: {refusal}"
        if not force:
            raise ImportRefused(f"{line}; --force imports it all the same")
        report(f"warning: {line}")
    return parity or own


def compare_with_witness(witness: Witness, encoder: Encoder, prompts: Iterable[str]) -> Comparison:
    """WITNESS_TEXTS without a prompt and REFERENCE_TEXTS behind each, of the same token ids.

    Each text is computed alone. The largest difference is told for vectors of length 1: it is over
    the length of the witness's vector.

    Raises:
        ImportRefused: either side cannot compute, or they give vectors of another size.
    """
    texts = [("", text) for text in WITNESS_TEXTS]
    texts += [
        (prompt, text) for prompt in dict.fromkeys(prompts) if prompt for text in REFERENCE_TEXTS
    ]
    sequences = [direct.tokenize(encoder.tokenizer, [text], prompt)[0] for prompt, text in texts]
    with refusing(f"{witness.folder}: cannot compute the texts of the witness"):
        theirs = witness.embed(sequences)
        ours = np.concatenate([encoder.backends[0].forward([one]) for one in sequences])
    if ours.shape != theirs.shape:
        raise ImportRefused(
            f"{witness.folder}: vectors of {ours.shape[1]} dimensions, but {theirs.shape[1]} of the "
            f"{witness.name}"
        )
    lengths = np.linalg.norm(theirs, axis=1, keepdims=True)
    similar = cosines(ours, theirs)
    return Comparison(
        texts=len(texts),
        # A NaN must not hide behind min and max.
        min_cosine=float(np.min(similar)),
        max_difference=float(np.max(np.abs(ours - theirs) / lengths)),
        worst="".join(texts[int(np.argmin(similar))]),
    )


def told(witness: Witness, found: Comparison) -> str:
    """A line of what the comparison found."""
    return (
        f"{witness.name}: {found.texts} texts: smallest cosine {found.min_cosine:.7f}, "
        f"largest difference {found.max_difference:.1e}"
    )


def beyond_rounding(found: Comparison) -> str | None:
    """What is wrong if more than rounding differs; None if nothing is."""
    if found.max_difference <= MOST_DIFFERENCE:
        return None
    return (
        f"the vectors are not those of the weights: largest difference {found.max_difference:.1e} "
        f"from the witness in numpy, at most {MOST_DIFFERENCE:.0e} is rounding "
        f"(worst: {found.worst[:40]!r})"
    )


def _beyond_cosine(found: Comparison) -> str | None:
    if found.min_cosine >= least_cosines.IMPORT:
        return None
    return (
        f"the publisher's graph does not compute the weights: cosine {found.min_cosine:.5f} with "
        f"the witness in numpy, at least {least_cosines.IMPORT} is needed "
        f"(worst: {found.worst[:40]!r})"
    )
