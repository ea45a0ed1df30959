"""On which devices models are computed, and in which numbers.

Decided once, before any model is read. torch is imported only where there is an NVIDIA driver or a
GPU was asked for.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from typing import Literal

from server.catalog.card import Card, Dtype
from server.errors import SettingError
from server.inference.backend_kinds import (
    CPU,
    BackendChoice,
    choose_backend,
    device_type_of,
    kinds_on,
)
from server.program.command_lines import install_command

log = logging.getLogger(__name__)

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where models are computed."""

    devices: tuple[str, ...] = (CPU,)  # as torch names them; the CPU alone, or GPUs
    dtype: Dtype | None = None  # None: what each card says
    chosen: bool = False  # by the person who starts it: a model that cannot go there is an error

    @property
    def on_cpu(self) -> bool:
        return device_type_of(self.devices) == "cpu"

    def backend_for(self, card: Card) -> BackendChoice:
        """What computes this card here; says in which numbers, and with them the fingerprint."""
        return choose_backend(card, self.devices, self.dtype, insist=self.chosen)


ON_CPU = Placement()


def find_placement(device: str, dtype: Dtype | Literal["auto"]) -> Placement:
    """What the settings of these names mean on this machine.

    Raises:
        SettingError: a GPU is asked for and is not there, or the CPU cannot compute in the dtype.
    """
    devices = _find_devices(device)
    usable = [one for kind in kinds_on("cpu") if kind.is_installed for one in kind.dtypes]
    if devices == (CPU,) and dtype not in ("auto", *usable):
        on_cpu = " or ".join(dict.fromkeys(usable))
        raise SettingError(f"setting dtype: {dtype} needs a GPU; on the CPU it is {on_cpu}")
    return Placement(devices, None if dtype == "auto" else dtype, chosen=device != "auto")


def _find_devices(device: str) -> tuple[str, ...]:
    if device == CPU or (device == "auto" and not _has_driver()):
        return (CPU,)
    if not kinds_on("gpu")[0].is_installed:
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
