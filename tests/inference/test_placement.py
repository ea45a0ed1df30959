"""Which devices the settings mean on which machine; a GPU that is not there is one clear line."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from server.catalog.card import Dtype
from server.errors import SettingError
from server.inference import placement
from server.inference.placement import Placement, find_placement
from server.program.command_lines import install_command


def gpu(name: str, capability: tuple[int, int] = (9, 0)) -> SimpleNamespace:
    """As torch_devices.GpuDevice, which only files that need torch may import."""

    class Gpu(SimpleNamespace):
        __str__ = lambda self: f"{name} (a card)"  # noqa: E731

    return Gpu(name=name, capability=capability)


class Machine:
    """What the machine seems to have."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def has(
        self,
        *devices: str,
        driver: bool = True,
        torch: bool = True,
        why_none: str = "",
        faults: dict[str, str] | None = None,
        broken: dict[str, str] | None = None,
        capabilities: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        """`faults` are found by looking at a device, `broken` by computing on it."""
        self._patch.setattr(placement, "_has_driver", lambda: driver)
        found = SimpleNamespace(
            usable=[gpu(name, (capabilities or {}).get(name, (9, 0))) for name in devices],
            faults=faults or {},
            why_none=why_none or ("" if devices or faults else "no CUDA GPUs are available"),
        )
        with_these = SimpleNamespace(
            find_devices=lambda: found, why_not_computing=lambda name: (broken or {}).get(name, "")
        )
        self._patch.setitem(sys.modules, "server.inference.torch_devices", with_these)
        spec = object() if torch else None
        self._patch.setattr(importlib.util, "find_spec", lambda name: spec)


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
        ("cuda", {}, "cuda is asked for, but no CUDA GPUs are available"),
        ("cuda:0", {"why_none": "the driver is too old"}, "cuda:0 .* but the driver is too old"),
        (
            "cuda",
            {"faults": {"cuda:0": "no kernels for cuda:0"}},
            "cuda .* but no kernels for cuda",
        ),
        ("cuda:0", {"faults": {"cuda:0": "no kernels for cuda:0"}}, "cuda:0 .* but no kernels"),
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


def test_the_cpu_computes_in_all_but_float16(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has(driver=False)
    monkeypatch.setattr(placement, "quick_dtypes", lambda: ("bfloat16", "int8"))
    on_cpu = "on the CPU it is float32, bfloat16 or int8"
    for device in ("cpu", "auto"):
        with pytest.raises(SettingError, match=f"setting dtype: float16 needs a GPU; {on_cpu}$"):
            find_placement(device, "float16")
    for dtype in ("float32", "bfloat16", "int8"):
        assert find_placement("cpu", dtype) == Placement(dtype=dtype, chosen=True)


@pytest.mark.parametrize(
    ("quick", "refused", "line"),
    [
        (
            (),
            "bfloat16",
            r"no instructions for bfloat16 \(AVX512_BF16 or AMX\); float32 it computes",
        ),
        (("bfloat16",), "int8", r"no instructions for int8 \(AVX512_VNNI or AVX_VNNI\)"),
    ],
)
def test_what_this_processor_would_only_emulate_is_refused(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    quick: tuple[Dtype, ...],
    refused: Dtype,
    line: str,
) -> None:
    machine.has(driver=False)
    monkeypatch.setattr(placement, "quick_dtypes", lambda: quick)
    with pytest.raises(SettingError, match=f"setting dtype: this processor has {line}"):
        find_placement("auto", refused)
    assert find_placement("cpu", "float32").on_cpu


def test_without_its_library_a_low_precision_names_the_command_that_brings_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has(driver=False, torch=False)  # nothing is installed
    monkeypatch.setattr(placement, "quick_dtypes", lambda: ("bfloat16", "int8"))
    command = re.escape(install_command("openvino"))
    for dtype in ("bfloat16", "int8"):
        with pytest.raises(
            SettingError, match=f"dtype: {dtype} on the CPU needs openvino: {command}"
        ):
            find_placement("cpu", dtype)
    assert find_placement("cpu", "float32").on_cpu


def test_a_gpu_computes_nothing_in_int8(machine: Machine) -> None:
    machine.has("cuda:0")
    line = r"int8 is for the CPU \(--device cpu\); on a GPU it is float32, float16 or bfloat16"
    for device in ("auto", "cuda", "cuda:0"):
        with pytest.raises(SettingError, match=f"setting dtype: {line}"):
            find_placement(device, "int8")


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ({"why_none": "The NVIDIA driver is too old"}, "The NVIDIA driver is too old"),
        ({"faults": {"cuda:0": "no kernels for cuda:0"}}, "no kernels for cuda:0"),
    ],
)
def test_auto_says_in_one_line_why_the_cpu_computes(
    machine: Machine, caplog: pytest.LogCaptureFixture, there: dict[str, Any], why: str
) -> None:
    machine.has(**there)
    assert find_placement("auto", "auto") == Placement()
    assert caplog.messages == [f"there is an NVIDIA driver, but the CPU computes: {why}"]


def test_a_gpu_on_which_a_product_fails_is_not_used_and_that_is_said(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.has("cuda:0", "cuda:1", broken={"cuda:1": "CUDA error: device lost"})
    for device in ("auto", "cuda"):
        assert find_placement(device, "auto").devices == ("cuda:0",)
        assert caplog.messages == ["a GPU is not used: cuda:1 (a card): CUDA error: device lost"]
        caplog.clear()
    with pytest.raises(SettingError, match=r"cuda:1 is asked for, but cuda:1 .* device lost"):
        find_placement("cuda:1", "auto")
    assert find_placement("cuda:0", "auto").devices == ("cuda:0",)
    assert not caplog.messages


def test_a_server_without_gpus_says_nothing_of_them(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.has(driver=False)
    find_placement("auto", "auto")
    assert not caplog.messages


def test_of_unlike_gpus_the_oldest_says_in_which_numbers(machine: Machine) -> None:
    machine.has("cuda:0", "cuda:1", capabilities={"cuda:1": (7, 5)})
    found = find_placement("auto", "auto")
    assert found.quick == ("float32", "float16")
    assert found.slowest == "cuda:1 (a card)"
    assert find_placement("cuda:0", "auto").quick == ("float32", "float16", "bfloat16")


def test_bfloat16_is_refused_where_a_gpu_would_emulate_it(machine: Machine) -> None:
    machine.has("cuda:0", capabilities={"cuda:0": (7, 0)})
    with pytest.raises(SettingError, match=r"setting dtype: cuda:0 .* has no bfloat16"):
        find_placement("auto", "bfloat16")
    assert find_placement("auto", "float16").dtype == "float16"
