"""Which CUDA devices torch can compute on, and why not on the others.

Asked once, before any model is read; prints and warns of nothing itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from server.errors import first_line

Capability = tuple[int, int]
_NUMBERED = re.compile(r"Error \d+: .*")  # CUDA's own words, as torch quotes them
_CODE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A device that torch sees."""

    name: str  # as torch has it
    product: str  # as its maker has it
    capability: Capability  # NVIDIA's compute capability

    def __str__(self) -> str:
        return f"{self.name} ({self.product}, compute capability {dotted(self.capability)})"


@dataclass(frozen=True, slots=True)
class FoundDevices:
    """What there is.

    Args:
        usable: in torch's order.
        faults: a line for each device that torch cannot compute on, by the device's name.
        why_none: why torch sees no device at all; empty if it sees one.
    """

    usable: tuple[GpuDevice, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)
    why_none: str = ""


def find_devices() -> FoundDevices:
    """The CUDA devices of this machine; computes nothing on them."""
    with warnings.catch_warnings():  # torch tells what is wrong in a dozen lines
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            return FoundDevices(why_none=_why_none())
        usable, faults = [], {}
        for number in range(torch.cuda.device_count()):
            name = f"cuda:{number}"
            try:
                capability = torch.cuda.get_device_capability(number)
                device = GpuDevice(name, torch.cuda.get_device_name(number), capability)
            except (RuntimeError, AssertionError) as error:
                faults[name] = f"{name}: {first_line(error)}"
                continue
            codes = torch.cuda.get_arch_list()
            if has_kernels(capability, codes):
                usable.append(device)
            else:
                has = " ".join(codes)
                faults[name] = f"torch {torch.__version__} has kernels for {has}, none for {device}"
    return FoundDevices(tuple(usable), faults)


def has_kernels(capability: Capability, codes: Sequence[str]) -> bool:
    """Whether a wheel that was compiled for these runs on such a device.

    Machine code runs on its own major version, from its minor version on; `compute` is compiled
    where it runs, on all later ones. Both of NVIDIA's rules end at a suffix: `a` is for one version
    alone, `f` for one major version.
    """
    parts = [found.groups() for found in map(_CODE.fullmatch, codes) if found]
    if not parts:  # not NVIDIA's, or nothing said
        return True
    for kind, major, minor, suffix in parts:
        code = (int(major), int(minor))
        on_later_ones = suffix != "a" and (kind == "compute" or code[0] == capability[0])
        if suffix == "f":
            on_later_ones = code[0] == capability[0]
        if code == capability or (code < capability and on_later_ones):
            return True
    return False


def why_not_computing(device: str) -> str:
    """Why a small product fails on the device, which is used for it; empty if it does not."""
    try:
        square = torch.eye(16, device=device)
        found = (square @ square).cpu()
    except Exception as error:  # drivers fail in many ways
        return first_line(error)
    return "" if torch.equal(found, torch.eye(16)) else "it computes a wrong product"


def dotted(capability: Capability) -> str:
    """As NVIDIA writes it."""
    return ".".join(map(str, capability))


def _why_none() -> str:
    """What torch says when it is made to use a device: that the driver is too old, for example."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        line = first_line(error)
        numbered = _NUMBERED.search(line)  # stands behind a guess
        sentence = numbered.group() if numbered else line.split(". ")[0].rstrip(".")
        return f"{sentence} (torch {torch.__version__})"
    return "torch finds no CUDA device"
