"""The one way to open a model: select its card, see its files, load it, warm it up, prove it.

Used by the server, the Python API and the commands alike. Knows no queues and no HTTP. Any thread
may call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.catalog.registry import Registry, read_registry
from server.catalog.verify import check_present
from server.inference import least_cosines
from server.inference.backend import LoadOptions
from server.inference.cpu_cores import usable_cores
from server.inference.loader import Encoder, load_encoder, load_rotation
from server.inference.parity import check_parity, check_range
from server.inference.placement import ON_CPU, Placement, find_placement
from server.inference.probing import warm_up
from server.settings import Settings


def select_cards(
    settings: Settings, names: Iterable[str], placement: Placement, *, check_files: bool
) -> Registry:
    """The models with these names or aliases, in this order, as they are computed there.

    Logs what other cards cannot be used.

    Args:
        check_files: see that all of their files are there in their full size.

    Raises:
        SettingError: a name is unknown.
        CardError: a card cannot be used.
        ModelFileError: a file is missing.
    """
    there = read_registry(*settings.model_folders())
    selected = there.select(names)
    there.warn_of_broken()
    if check_files:
        for card in selected.cards:
            check_present(card)
    return Registry(placement.backend_for(card).card for card in selected.cards)


class Opener:
    """Opens models as the settings say.

    Args:
        placement: where they compute.
        spread_alone: a pass that is alone on the machine may use all of its cores, which is quick
            and takes memory for a second session. On a CPU the bits are the same with it and
            without, but for a publisher's graph: without it, the same micro-batch gives that the
            same bits whatever else the machine does.
    """

    placement: Placement = ON_CPU

    def __init__(
        self, settings: Settings, placement: Placement = ON_CPU, *, spread_alone: bool = True
    ) -> None:
        self.placement = placement
        self._settings = settings
        self._spread_alone = spread_alone

    @classmethod
    def on_this_machine(cls, settings: Settings, *, spread_alone: bool = True) -> Self:
        """The opener for the devices that the settings mean here.

        Raises:
            SettingError: one is asked for that is not there.
        """
        placement = find_placement(settings.device, settings.dtype)
        return cls(settings, placement, spread_alone=spread_alone)

    def load_encoder(self, card: Card) -> Encoder:
        """The encoder of a card that has no base, as it was read: neither warm nor proved.

        Raises:
            StartupError: a file is wrong or cannot be used.
        """
        settings = self._settings
        if settings.check_files == "sizes":  # full looks at them as well
            check_present(card)
        options = LoadOptions(
            wide_threads=worker_threads(settings) if self._spread_alone else 1,
            max_batch_tokens=settings.max_batch_tokens,
            worker_threads=worker_threads(settings),
        )
        hash_files = settings.check_files == "full"
        return load_encoder(card, self.placement, options, hash_files=hash_files)

    def open_encoder(self, card: Card) -> Encoder:
        """The encoder of a card that has no base, ready for its first request.

        Raises:
            StartupError: a file is wrong or cannot be used, or the vectors are not the card's.
        """
        encoder = self.load_encoder(card)
        warm_up(encoder)
        if self.placement.backend_for(card).card.dtype == "float16":
            check_range(encoder, card)
        check_parity(encoder, card, self.min_parity(card))
        return encoder

    def min_parity(self, card: Card) -> float:
        """Least cosine to the card's reference vectors that this machine may give."""
        if self._settings.min_parity is not None:
            return self._settings.min_parity
        choice = self.placement.backend_for(card)
        if not choice.on_cpu:
            return least_cosines.START
        if choice.card.dtype == "int8":
            return choice.card.int8_recipe.min_cosine
        return least_cosines.START_ON_CPU[choice.card.dtype]

    def measure_again(self, encoder: Encoder) -> Encoder:
        """The encoder with what its GPUs can do now that other models take of their memory.

        Raises:
            ModelLoadError: they leave too little.
        """
        if encoder.capacity is None:
            return encoder
        from server.inference.torch_backend import measure_again

        return replace(encoder, capacity=measure_again(encoder.backends, encoder.capacity))

    def open_rotation(self, card: Card) -> NDArray[np.float32] | None:
        """The card's rotation, (embedding_dim, embedding_dim), or None if it has none.

        Raises:
            StartupError: its file is wrong or cannot be used.
        """
        return load_rotation(card, hash_files=self._settings.check_files == "full")


def worker_threads(settings: Settings) -> int:
    """How many worker threads a model gets on the CPU."""
    return settings.threads or usable_cores()
