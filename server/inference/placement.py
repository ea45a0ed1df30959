"""On which devices models are computed, and in which numbers.

Decided once, before any model is read. torch is imported only where there is an NVIDIA driver or a
GPU was asked for.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from dataclasses import dataclass
from typing import Literal

from server.catalog.card import Card, Dtype
from server.errors import SettingError
from server.program.command_lines import install_command

log = logging.getLogger(__name__)

CPU = "cpu"
_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where models are computed."""

    devices: tuple[str, ...] = (CPU,)  # as torch names them; the CPU alone, or GPUs
    dtype: Dtype | None = None  # None: what each card says
    chosen: bool = False  # by the person who starts it: a model that cannot go there is an error

    @property
    def on_cpu(self) -> bool:
        return self.devices == (CPU,)

    def devices_of(self, card: Card) -> tuple[str, ...]:
        """Where this card's encoder is computed."""
        if self.on_cpu or card.encoder_card.torch is not None or self.chosen:
            return self.devices
        log.warning(
            "model %s is computed on the CPU: its card has no [torch] table (import it again)",
            card.name,
        )
        return (CPU,)

    def apply(self, card: Card) -> Card:
        """The card as it is served here: its `dtype`, and with it its fingerprint."""
        torch_model = card.encoder_card.torch
        if self.on_cpu or torch_model is None:
            return card
        return card.computed_in(self.dtype or torch_model.dtype)


ON_CPU = Placement()


def find_placement(device: str, dtype: Dtype | Literal["auto"]) -> Placement:
    """What the settings of these names mean on this machine.

    Raises:
        SettingError: a GPU is asked for and is not there, or the CPU cannot compute in the dtype.
    """
    devices = _find_devices(device)
    if devices == (CPU,) and dtype not in ("auto", "float32"):
        raise SettingError(f"setting dtype: {dtype} needs a GPU; on the CPU it is float32")
    return Placement(devices, None if dtype == "auto" else dtype, chosen=device != "auto")


def _find_devices(device: str) -> tuple[str, ...]:
    if device == CPU or (device == "auto" and not _has_driver()):
        return (CPU,)
    if importlib.util.find_spec("torch") is None:
        if device == "auto":
            log.info("there is an NVIDIA driver but no torch: computing on the CPU")
            return (CPU,)
        raise SettingError(f"setting device: {device} needs torch: {install_command('torch')}")
    from server.inference.torch_cuda import device_names

    found = device_names()
    if device == "auto":
        return tuple(found) or (CPU,)
    if not found:
        raise SettingError(f"setting device: {device} is asked for, but torch finds no CUDA device")
    if device == "cuda":
        return tuple(found)
    if device not in found:
        raise SettingError(f"setting device: no {device} here, but {', '.join(found)}")
    return (device,)


def _has_driver() -> bool:
    """Whether a program could ask for a GPU; takes no time where there is none."""
    for name in _DRIVERS:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
