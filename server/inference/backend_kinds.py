"""What may compute a model, as a table, and the choice of one row for a card.

A further backend is one file with a `load_backends` (see BackendModule) and one row of `KINDS`.
Its library is imported when the row is chosen, not before. Knows no machine: which devices there
are is said by `placement`. Pure; any thread may call.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from server.catalog.card import GRAPH_FILE, Card, Dtype, GpuDtype
from server.catalog.cpu_precision import CpuDtype
from server.errors import SettingError
from server.inference import least_cosines
from server.inference.backend import Backend, Capacity, LoadOptions

DeviceType = Literal["cpu", "gpu"]

GPU_DTYPES: tuple[Dtype, ...] = get_args(GpuDtype)
CPU = "cpu"  # the device of rows for the CPU; all other names are a GPU's, as torch has them


class BackendModule(Protocol):
    """What the module of a kind offers."""

    def load_backends(
        self, card: Card, devices: Sequence[str], options: LoadOptions
    ) -> tuple[tuple[Backend, ...], Capacity | None]:
        """One backend a device, ready to compute, and what was measured of them.

        Args:
            card: has no base; its `dtype` is the one to compute in.

        Returns:
            None in place of a capacity stands for the cores of a CPU, which are not measured.

        Raises:
            ModelLoadError: a file cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackendKind:
    """One row: a library that computes cards on one type of device.

    Its functions are asked about cards without a base.
    """

    module: str  # where its backends are
    # The extra of this software that brings its library, named like it; None: always installed.
    extra: str | None
    device_type: DeviceType
    dtypes: tuple[Dtype, ...]
    files: Callable[[Card], tuple[str, ...]]  # that it computes from; empty: it cannot
    default_dtype: Callable[[Card], Dtype]
    # Smallest cosine to the card's vectors in float32, by dtype, as far as it was measured.
    min_cosines: Callable[[Card], Mapping[Dtype, float]]

    @property
    def is_installed(self) -> bool:
        """Whether its library is there; it is not imported."""
        return self.extra is None or importlib.util.find_spec(self.extra) is not None

    def load(
        self, card: Card, devices: Sequence[str], options: LoadOptions
    ) -> tuple[tuple[Backend, ...], Capacity | None]:
        """See BackendModule; imports the library."""
        module: BackendModule = importlib.import_module(self.module)
        return module.load_backends(card, devices, options)


def _graph(card: Card) -> tuple[str, ...]:
    return (GRAPH_FILE,) if GRAPH_FILE in card.files else ()


def _torch_files(card: Card) -> tuple[str, ...]:
    return card.torch.files if card.torch else ()


def _torch_dtype(card: Card) -> Dtype:
    return card.torch.dtype if card.torch else card.dtype


def _torch_cosines(card: Card) -> Mapping[Dtype, float]:
    return {one.dtype: one.min_cosine for one in card.torch.precision} if card.torch else {}


# Of those that can compute a card on a device in a dtype, the first one that is installed does.
KINDS = (
    BackendKind(
        "server.inference.onnx_backend",
        extra=None,
        device_type="cpu",
        dtypes=("float32",),
        files=_graph,
        default_dtype=lambda card: "float32",
        min_cosines=lambda card: {"float32": 1.0},  # these are the card's vectors
    ),
    BackendKind(
        "server.inference.openvino_backend",
        extra="openvino",
        device_type="cpu",
        dtypes=get_args(CpuDtype),
        files=_graph,
        default_dtype=lambda card: "bfloat16",
        min_cosines=lambda card: {one.dtype: one.min_cosine for one in card.cpu_precision},
    ),
    BackendKind(
        "server.inference.torch_backend",
        extra="torch",
        device_type="gpu",
        dtypes=GPU_DTYPES,
        files=_torch_files,
        default_dtype=_torch_dtype,
        min_cosines=_torch_cosines,
    ),
)


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """What computes a card."""

    kind: BackendKind
    devices: tuple[str, ...]
    card: Card  # as it is computed: its `dtype`, and with it its fingerprint
    instead_of: Dtype | None = None  # what the card prefers, if the devices lack it

    @property
    def on_cpu(self) -> bool:
        """Whether its device is the CPU."""
        return self.kind.device_type == "cpu"


def device_type_of(devices: Sequence[str]) -> DeviceType:
    """What these devices are."""
    return "cpu" if tuple(devices) == (CPU,) else "gpu"


def kinds_on(device_type: DeviceType) -> tuple[BackendKind, ...]:
    """The rows for a type of device, never empty."""
    return tuple(kind for kind in KINDS if kind.device_type == device_type)


def dtypes_of(capability: tuple[int, int]) -> tuple[Dtype, ...]:
    """In which numbers a GPU of this compute capability is quick.

    bfloat16 came with 8.0, and products in float16 with 7.0; before, both are emulated or slow.
    """
    if capability >= (8, 0):
        return GPU_DTYPES
    return ("float32", "float16") if capability >= (7, 0) else ("float32",)


def choose_backend(
    card: Card,
    devices: Sequence[str],
    dtype: Dtype | None = None,
    *,
    insist: bool = False,
    quick: Sequence[Dtype] = GPU_DTYPES,
) -> BackendChoice:
    """What computes this card on these devices, the one place of that decision.

    A row whose library is not installed is passed over if another one can do it.

    Args:
        devices: the CPU alone, or GPUs.
        dtype: None: the one that the card prefers there, if it is quick there.
        insist: a card that cannot be computed on these GPUs is not computed on the CPU instead;
            the first row is chosen, and loading it says what the card lacks.
        quick: what all of these GPUs compute quickly; float32 is always among it.

    Raises:
        SettingError: the CPU computes this card, but not in the dtype; or its card says that int8
            is not offered.
    """
    encoder_card = card.encoder_card
    if dtype == "int8" and not card.int8_recipe.offered:
        raise SettingError(
            f"setting dtype: model {card.name} is not offered in int8: when its card was made no recipe "
            "kept enough of its vectors; bfloat16 and float32 it computes"
        )
    device_type = device_type_of(devices)
    kinds = kinds_on(device_type)
    able = [kind for kind in kinds if kind.files(encoder_card)]
    fitting = [kind for kind in able if dtype is None or dtype in kind.dtypes]
    if fitting:
        kind = next((one for one in fitting if one.is_installed), fitting[0])
        chosen = preferred = dtype or kind.default_dtype(encoder_card)
        if dtype is None and device_type == "gpu" and preferred not in quick:
            chosen = _near_enough(kind.min_cosines(encoder_card), quick)
        instead_of = preferred if chosen != preferred else None
        return BackendChoice(kind, tuple(devices), card.computed_in(chosen), instead_of)
    if device_type == "gpu" and not insist:
        return choose_backend(card, (CPU,))
    if device_type == "cpu" and able:
        raise SettingError(
            f"setting dtype: model {card.name} is not computed in {dtype} on the CPU"
        )
    return BackendChoice(kinds[0], tuple(devices), card)


def _near_enough(measured: Mapping[Dtype, float], quick: Sequence[Dtype]) -> Dtype:
    """float16, if it is quick and gave the card's vectors when that was measured; else float32.

    What overflows in float16 was not finite when it was measured, and has no cosine.
    """
    near = measured.get("float16", 0.0) >= least_cosines.DEFAULT_DTYPE
    return "float16" if near and "float16" in quick else "float32"
