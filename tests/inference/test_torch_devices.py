"""What torch says of a machine's GPUs, as far as a machine without one can tell."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from server.inference.torch_devices import find_devices, has_kernels, why_not_computing

CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CUDA_13_0 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "codes", "expected"),
    [
        ((7, 0), CUDA_12_6, True),
        ((7, 0), CUDA_13_0, False),  # a V100
        ((6, 1), CUDA_13_0, False),
        ((6, 1), CUDA_12_6, True),  # code for 6.0
        ((7, 5), CUDA_13_0, True),
        ((8, 9), CUDA_13_0, True),  # code for 8.6
        ((10, 3), CUDA_12_6, False),
        ((12, 1), CUDA_13_0, True),
        ((13, 0), CUDA_13_0, True),  # compiled where it runs
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["compute_100f"], False),
        ((9, 4), ["gfx90a", "gfx942"], True),  # AMD's, of which this says nothing
        ((9, 0), [], True),
    ],
)
def test_a_wheel_has_kernels_for_a_card_or_not(
    capability: tuple[int, int], codes: list[str], expected: bool
) -> None:
    assert has_kernels(capability, codes) is expected


def machine_with(
    patch: pytest.MonkeyPatch, cards: dict[str, tuple[int, int] | Exception], codes: list[str]
) -> None:
    """torch as it speaks where there are these cards."""

    def capability(number: int) -> tuple[int, int]:
        found = list(cards.values())[number]
        warnings.warn("This GPU is not supported.\nSee the table below.", stacklevel=2)
        if isinstance(found, Exception):
            raise found
        return found

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: len(cards),
        "get_device_capability": capability,
        "get_device_name": lambda number: list(cards)[number],
        "get_arch_list": lambda: codes,
    }.items():
        patch.setattr(torch.cuda, name, value)


@pytest.mark.filterwarnings("error")
def test_cards_without_kernels_and_lost_ones_are_told_from_the_others_in_one_line_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = RuntimeError("CUDA error: device lost\nCompile with TORCH_USE_CUDA_DSA")
    cards: dict[str, Any] = {"Tesla V100": (7, 0), "Tesla T4": (7, 5), "NVIDIA H100": lost}
    machine_with(monkeypatch, cards, CUDA_13_0)
    found = find_devices()
    assert [str(gpu) for gpu in found.usable] == ["cuda:1 (Tesla T4, compute capability 7.5)"]
    assert found.faults == {
        "cuda:0": f"torch {torch.__version__} has kernels for {' '.join(CUDA_13_0)}, none for "
        "cuda:0 (Tesla V100, compute capability 7.0)",
        "cuda:2": "cuda:2: CUDA error: device lost",
    }
    assert not found.why_none


GUESS = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
    "NumCudaDevices() that might have already set an error? "
)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update it.",
            "The NVIDIA driver on your system is too old (found version 11040)",
        ),
        (
            f"{GUESS}Error 803: system has unsupported display driver / cuda driver combination",
            "Error 803: system has unsupported display driver / cuda driver combination",
        ),
        (f"{GUESS}Error 802: system not yet initialized", "Error 802: system not yet initialized"),
        ("No CUDA GPUs are available", "No CUDA GPUs are available"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_wrong_with_a_driver_is_told_in_torchs_words(
    monkeypatch: pytest.MonkeyPatch, told: str, why: str
) -> None:
    def available() -> bool:
        warnings.warn(f"CUDA initialization: {told}", stacklevel=2)
        return False

    def init() -> None:
        raise RuntimeError(told)

    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.cuda, "init", init)
    assert find_devices().why_none == f"{why} (torch {torch.__version__})"


def test_without_a_gpu_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = find_devices()
    assert found.usable == ()
    assert found.why_none


def test_a_device_that_cannot_compute_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not_computing("cpu") == ""
    assert why_not_computing("cuda:77")
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, right: left + right)
    assert why_not_computing("cpu") == "it computes a wrong product"
