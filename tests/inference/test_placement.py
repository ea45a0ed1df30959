"""Which devices the settings mean on which machine; a GPU that is not there is one clear line."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import SettingError
from server.inference import placement
from server.inference.placement import Placement, find_placement
from server.program.command_lines import install_command


class Machine:
    """What the machine seems to have."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def has(self, *devices: str, driver: bool = True, torch: bool = True) -> None:
        self._patch.setattr(placement, "_has_driver", lambda: driver)
        with_these = SimpleNamespace(device_names=lambda: list(devices))
        self._patch.setitem(sys.modules, "server.inference.torch_cuda", with_these)
        found = object() if torch else None
        self._patch.setattr(importlib.util, "find_spec", lambda name: found)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("device", "devices"),
    [
        ("auto", ("cuda:0", "cuda:1")),
        ("cuda", ("cuda:0", "cuda:1")),
        ("cuda:1", ("cuda:1",)),
        ("cpu", ("cpu",)),
    ],
)
def test_all_gpus_one_of_them_or_none(
    machine: Machine, device: str, devices: tuple[str, ...]
) -> None:
    machine.has("cuda:0", "cuda:1")
    assert find_placement(device, "auto").devices == devices


@pytest.mark.parametrize(
    "lacks", [{"driver": False}, {"torch": False}, {}], ids=["driver", "torch", "device"]
)
def test_without_a_gpu_auto_means_the_cpu(machine: Machine, lacks: dict[str, Any]) -> None:
    machine.has(*(["cuda:0"] if lacks else []), **lacks)
    assert find_placement("auto", "auto") == Placement()
    assert find_placement("auto", "float32").on_cpu


def test_torch_is_not_even_looked_for_without_a_driver(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has(driver=False)
    monkeypatch.setattr(importlib.util, "find_spec", None)
    assert find_placement("auto", "auto").on_cpu
    assert find_placement("cpu", "auto").on_cpu


@pytest.mark.parametrize(
    ("device", "there", "line"),
    [
        ("cuda", {"torch": False}, f"cuda needs torch: {re.escape(install_command('torch'))}"),
        ("cuda", {}, "cuda is asked for, but torch finds no CUDA device"),
        ("cuda:0", {}, "cuda:0 is asked for, but torch finds no CUDA device"),
    ],
)
def test_a_gpu_that_is_asked_for_and_absent_is_an_error(
    machine: Machine, device: str, there: dict[str, Any], line: str
) -> None:
    machine.has(**there)
    with pytest.raises(SettingError, match=f"setting device: {line}"):
        find_placement(device, "auto")


def test_a_gpu_of_a_number_that_is_not_there_is_named_with_those_that_are(machine: Machine) -> None:
    machine.has("cuda:0", "cuda:1")
    with pytest.raises(SettingError, match="no cuda:2 here, but cuda:0, cuda:1"):
        find_placement("cuda:2", "auto")


def test_the_cpu_computes_in_float32_only(machine: Machine) -> None:
    machine.has(driver=False)
    for device in ("cpu", "auto"):
        with pytest.raises(SettingError, match="setting dtype: float16 needs a GPU"):
            find_placement(device, "float16")
