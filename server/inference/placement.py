"""On which devices models are computed, and in which numbers.

Decided once, before any model is read. torch is imported only where there is an NVIDIA driver or a
GPU was asked for.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from server.catalog.card import Card, Dtype
from server.errors import SettingError
from server.inference.backend_kinds import (
    CPU,
    GPU_DTYPES,
    BackendChoice,
    choose_backend,
    device_type_of,
    dtypes_of,
    kinds_on,
)
from server.inference.cpu_instructions import instructions_for, quick_dtypes
from server.program.command_lines import install_command

if TYPE_CHECKING:
    from server.inference.torch_devices import GpuDevice

log = logging.getLogger(__name__)

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where models are computed."""

    devices: tuple[str, ...] = (CPU,)  # as torch names them; the CPU alone, or GPUs
    dtype: Dtype | None = None  # None: what each card says
    chosen: bool = False  # by the person who starts it: a model that cannot go there is an error
    quick: tuple[Dtype, ...] = GPU_DTYPES  # what all of the GPUs compute quickly
    slowest: str = ""  # the GPU that decides that

    @property
    def on_cpu(self) -> bool:
        return device_type_of(self.devices) == "cpu"

    def backend_for(self, card: Card) -> BackendChoice:
        """What computes this card here; says in which numbers, and with them the fingerprint."""
        return choose_backend(card, self.devices, self.dtype, insist=self.chosen, quick=self.quick)


ON_CPU = Placement()


def find_placement(device: str, dtype: Dtype | Literal["auto"]) -> Placement:
    """What the settings of these names mean on this machine.

    Raises:
        SettingError: a GPU is asked for and is not there or cannot be used, or what computes has
            not the dtype.
    """
    gpus = _find_gpus(device)
    wished, chosen = None if dtype == "auto" else dtype, device != "auto"
    if not gpus:
        if wished is not None:
            _check_cpu_dtype(wished)
        return Placement((CPU,), wished, chosen)
    if wished is not None and wished not in GPU_DTYPES:
        raise SettingError(
            f"setting dtype: {wished} is for the CPU (--device cpu); on a GPU it is "
            f"{_either(GPU_DTYPES)}"
        )
    slowest = min(gpus, key=lambda gpu: gpu.capability)
    quick = dtypes_of(slowest.capability)
    if wished == "bfloat16" and wished not in quick:  # emulated, if at all
        raise SettingError(f"setting dtype: {slowest} has no bfloat16; float16 and float32 it has")
    return Placement(tuple(gpu.name for gpu in gpus), wished, chosen, quick, str(slowest))


def _check_cpu_dtype(dtype: Dtype) -> None:
    """Refuse what is not computed, or only emulated, on this machine's CPU.

    Raises:
        SettingError: says what is lacking.
    """
    kinds = kinds_on("cpu")
    able = [kind for kind in kinds if dtype in kind.dtypes]
    if not able:
        on_cpu = _either(list(dict.fromkeys(one for kind in kinds for one in kind.dtypes)))
        raise SettingError(f"setting dtype: {dtype} needs a GPU; on the CPU it is {on_cpu}")
    if dtype not in ("float32", *quick_dtypes()):
        raise SettingError(
            f"setting dtype: this processor has no instructions for {dtype} "
            f"({instructions_for(dtype)}); float32 it computes"
        )
    if not any(kind.is_installed for kind in able):
        extra = able[0].extra or ""
        raise SettingError(
            f"setting dtype: {dtype} on the CPU needs {extra}: {install_command(extra)}"
        )


def _either(dtypes: Sequence[Dtype]) -> str:
    return ", ".join(dtypes[:-1]) + f" or {dtypes[-1]}"


def _find_gpus(device: str) -> tuple[GpuDevice, ...]:
    """Those to compute on; none: the CPU computes, and the log says why if that may surprise."""
    if device == CPU or (device == "auto" and not _has_driver()):
        return ()
    if not kinds_on("gpu")[0].is_installed:
        if device == "auto":
            log.info("there is an NVIDIA driver but no torch: computing on the CPU")
            return ()
        raise SettingError(f"setting device: {device} needs torch: {install_command('torch')}")
    from server.inference.torch_devices import find_devices, why_not_computing

    found = find_devices()
    there = sorted([*found.faults, *(gpu.name for gpu in found.usable)])
    every = device in ("auto", "cuda")
    if there and not every and device not in there:
        raise SettingError(f"setting device: no {device} here, but {', '.join(there)}")
    wished = [gpu for gpu in found.usable if every or gpu.name == device]
    faults = {name: why for name, why in found.faults.items() if every or name == device}
    faults |= {gpu.name: f"{gpu}: {why}" for gpu in wished if (why := why_not_computing(gpu.name))}
    gpus = tuple(gpu for gpu in wished if gpu.name not in faults)
    if gpus:
        for why in faults.values():
            log.warning("a GPU is not used: %s", why)
        return gpus
    why = found.why_none or "; ".join(faults.values())
    if device != "auto":
        raise SettingError(f"setting device: {device} is asked for, but {why}")
    log.warning("there is an NVIDIA driver, but the CPU computes: %s", why)
    return ()


def _has_driver() -> bool:
    """Whether a program could ask for a GPU; takes no time where there is none."""
    for name in _DRIVERS:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
