"""The card of the benchmark's model, as a server on this device would serve it. Needs no torch."""

from __future__ import annotations

from scripts.benchmark.client import MODEL
from server.catalog.card import Card
from server.catalog.registry import read_registry
from server.inference.backend_kinds import choose_backend
from server.settings import load_settings


def served_card(device: str) -> Card:
    """With the settings of the environment; on the CPU in float32.

    Args:
        device: as torch names it.
    """
    settings = load_settings()
    card = read_registry(*settings.model_folders()).resolve(MODEL)
    dtype = None if settings.dtype == "auto" else settings.dtype
    return choose_backend(card, (device,), dtype).card
