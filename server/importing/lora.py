"""A LoRA adapter merged into the weights that it was trained on: W + scale * B A, in float32.

LoRA: https://arxiv.org/abs/2106.09685, section 4.1 (scale is alpha / r); rank-stabilised:
https://arxiv.org/abs/2312.03732 (alpha / sqrt(r)). Files as peft writes them. Only what is exactly
that, on linear layers, is merged. Numpy alone, some rows at a time. Not for two into one file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import ImportRefused
from server.importing.json_files import read_json
from server.importing.tensor_files import TensorFile, read_tensor_files, write_tensor_file
from server.inference.tensor_account import listed

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
_ELSEWHERE = "merge it where it was trained (peft: merge_and_unload) and import the result"
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight"
)
# Keys of adapter_config.json that do not change how a trained adapter is computed.
_PLAIN_KEYS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"}
    | {"exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern"}
    | {"layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_core"}
    | {"peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "alpha_pattern"}
    | {"revision", "runtime_config", "target_modules", "task_type", "use_rslora", "bias"}
)
# Others (PiSSA, OLoRA, LoftQ, CorDA) change the base's weights, too, before training.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Their layers keep a weight as (in, out).
_TURNED = frozenset({"gpt2", "openai-gpt"})
_CHUNK_NUMBERS = 4_000_000


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """What one linear layer gets; A is (rank, in), B (out, rank), float32."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows of what is added to the weight, (end - begin, in)."""
        added: NDArray[np.float32] = np.float32(self.scale) * (self.b[begin:end] @ self.a)
        return added


def read_lora(folder: Path) -> dict[str, LoraLayer]:
    """The layers of an adapter by the names of their modules.

    Raises:
        ImportRefused: it is not LoRA on linear layers alone, or its files do not fit.
    """
    config = read_json(folder / ADAPTER_CONFIG_FILE)
    _check_config(folder / ADAPTER_CONFIG_FILE, config)
    if not (folder / ADAPTER_FILE).is_file():
        raise ImportRefused(
            f"{folder}: no {ADAPTER_FILE}; what adapter_model.bin holds can run code when it is "
            "read: convert it where that code may run"
        )
    tensors = read_tensor_files(folder, [ADAPTER_FILE])
    found: dict[str, dict[str, TensorFile]] = {}
    strange = []
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or len(tensor.shape) != 2:
            strange.append(name)
            continue
        found.setdefault(match["module"], {})[match["side"]] = tensor
    strange += [f"{module} (only half)" for module, sides in found.items() if len(sides) != 2]
    if strange or not found:
        raise ImportRefused(
            f"{folder / ADAPTER_FILE}: holds what is not LoRA on a linear layer: "
            f"{listed(strange) or 'nothing'}; {_ELSEWHERE}"
        )
    return {
        module: _layer(folder / ADAPTER_FILE, module, sides, config)
        for module, sides in found.items()
    }


def merge_lora(
    base: Path, files: list[str], model_type: str, layers: Mapping[str, LoraLayer], into: Path
) -> None:
    """Write the base's tensors with the layers added to them, floats as float32, into one file.

    Args:
        base: the folder of the base's safetensors `files`.
        model_type: of the base, as transformers calls it.

    Raises:
        ImportRefused: a layer has no place in the base, or another shape.
        OSError: the file cannot be written.
    """
    if model_type in _TURNED:
        raise ImportRefused(
            f"{base}: the layers of {model_type} are kept the other way round (fan_in_fan_out), "
            f"which is not merged here; {_ELSEWHERE}"
        )
    tensors = read_tensor_files(base, files)
    added: dict[str, LoraLayer] = {}
    for module, layer in layers.items():
        name = _place(base, module, tensors)
        wanted = (layer.b.shape[0], layer.a.shape[1])
        if tensors[name].shape != wanted or not tensors[name].is_float:
            raise ImportRefused(
                f"{base}: {name} has the shape {list(tensors[name].shape)}, but the adapter is for "
                f"{list(wanted)}: it was trained on another model"
            )
        if name in added:
            raise ImportRefused(f"{base}: two layers of the adapter are for {name}")
        added[name] = layer
    write_tensor_file(into, tensors, lambda name: _merged_rows(tensors[name], added.get(name)))


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse what would be computed otherwise, by its name."""
    wrong = [key for key, value in config.items() if value and key not in _PLAIN_KEYS]
    if config.get("peft_type") != "LORA":
        wrong.append("peft_type")
    if config.get("bias", "none") != "none":
        wrong.append("bias")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        wrong.append("init_lora_weights")
    if wrong:
        said = ", ".join(f"{key} = {config.get(key)!r}" for key in wrong)
        raise ImportRefused(
            f"{file}: {said}: not plain LoRA on linear layers, which alone is merged here; "
            f"{_ELSEWHERE}"
        )


def _layer(
    file: Path, module: str, sides: Mapping[str, TensorFile], config: Mapping[str, Any]
) -> LoraLayer:
    a, b = sides["A"].read(), sides["B"].read()
    rank = _pattern(config, "rank_pattern", module, config.get("r"))
    alpha = _pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if not all(isinstance(n, int | float) and n > 0 for n in (rank, alpha)):
        raise ImportRefused(
            f"{file.with_name(ADAPTER_CONFIG_FILE)}: r and lora_alpha must be numbers"
        )
    if a.shape[0] != rank or b.shape[1] != rank:
        raise ImportRefused(
            f"{file}: {module} has the rank {a.shape[0]} and {b.shape[1]}, but "
            f"{ADAPTER_CONFIG_FILE} says {rank}"
        )
    return LoraLayer(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern(config: Mapping[str, Any], key: str, module: str, usual: Any) -> Any:
    """peft: the first pattern that matches a module's name, or its end behind a dot, counts."""
    patterns = config.get(key) or {}
    try:
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    except (AttributeError, re.error):
        raise ImportRefused(f"{ADAPTER_CONFIG_FILE}: {key} must be numbers by patterns") from None
    return usual


def _place(base: Path, module: str, tensors: Mapping[str, TensorFile]) -> str:
    """The weight of a module, whose name may have a prefix (`bert.`, `model.`) on either side."""
    name = f"{module}.weight"
    if name in tensors:
        return name
    alike = [one for one in tensors if one.endswith(f".{name}") or name.endswith(f".{one}")]
    if len(alike) != 1:
        raise ImportRefused(
            f"{base}: the adapter changes {module}, for which the base has "
            f"{listed(alike) or 'no weight'}; it was trained on another model"
        )
    return alike[0]


def _merged_rows(tensor: TensorFile, layer: LoraLayer | None) -> Iterator[bytes]:
    """The tensor's bytes, in float32 if it holds floats, a part at a time."""
    if not tensor.is_float:
        yield tensor.read_bytes()
        return
    width = math.prod(tensor.shape[1:])
    step = max(1, _CHUNK_NUMBERS // max(1, width))
    count = tensor.shape[0] if tensor.shape else 1
    for begin in range(0, count, step):
        end = min(begin + step, count)
        rows = tensor.read_rows(begin, end)
        if layer is not None:
            rows = rows + layer.rows(begin, end)
        yield rows.astype("<f4", copy=False).tobytes()
