"""`models verify --witness`: installed models computed once more, straight from their weights.

For the command line; one thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from server.catalog.card import Card
from server.errors import ModelFileError
from server.importing.witness.witness import Witness, lack_of
from server.importing.witness_proof import beyond_rounding, compare_with_witness, told
from server.inference.loader import load_encoder


def check_by_witness(cards: Iterable[Card], *, insist: bool) -> None:
    """Compare each model, as the CPU serves it, with its witness; print a line each.

    Args:
        cards: their bytes have been compared already.
        insist: a model without a witness is an error, not only told.

    Raises:
        ModelFileError: vectors are not those of the weights, or a witness is lacking.
        ModelLoadError, ImportRefused: a model cannot be computed, or its witness cannot.
    """
    wrong = []
    for card in cards:
        witness = Witness.of_card(card.encoder_card)
        if witness is None:
            print(f"{card.name}: {lack_of(card.architecture)}")
            wrong += [f"{card.name}: {lack_of(card.architecture)}"] if insist else []
            continue
        encoder = load_encoder(card.encoder_card, hash_files=False)
        found = compare_with_witness(witness, encoder, card.prompts.values())
        print(f"{card.name}: {told(witness, found)}")
        if (reason := beyond_rounding(found)) is not None:
            wrong.append(f"{card.name}: {reason}")
    if wrong:
        raise ModelFileError("; ".join(wrong))
