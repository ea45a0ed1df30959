"""A transformer read from a config and safetensors files: no code of the model's, no pickle.

The one way in which torch reads a model, for its export and for GPUs. Knows nothing of cards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    MT5EncoderModel,
    PreTrainedModel,
    T5EncoderModel,
    UMT5EncoderModel,
)
from transformers.utils import logging as transformers_logging

# Of models of two halves only the encoder makes embeddings, as in sentence-transformers.
ENCODERS = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}


@dataclass(frozen=True, slots=True)
class ReadTransformer:
    """What was read, and how far files and architecture agree about it."""

    model: PreTrainedModel
    missing: tuple[str, ...]  # what the architecture has and the files lack; random numbers now
    unexpected: tuple[str, ...]  # what the files hold and the architecture does not take


def read_transformer(config: Path, weights: Iterable[Path], dtype: torch.dtype) -> ReadTransformer:
    """The transformer, on the CPU, with eager attention.

    Args:
        config: transformers' config.json.
        weights: its safetensors files.
        dtype: the weights are converted to it.

    Raises:
        Exception: of any class, since a config can be wrong in any way.
    """
    quiet_transformers()
    found = AutoConfig.from_pretrained(config, local_files_only=True, trust_remote_code=False)
    if hasattr(found, "quantization_config"):
        raise ValueError("quantised weights are not supported")
    tensors: dict[str, torch.Tensor] = {}
    for file in weights:
        tensors |= load_file(file)
    model_class = ENCODERS.get(found.model_type) or MODEL_MAPPING[type(found)]
    model, report = model_class.from_pretrained(
        None,
        config=found,
        state_dict=tensors,
        dtype=dtype,
        attn_implementation="eager",  # the config could name a kernel to be fetched from a hub
        output_loading_info=True,
    )
    missing, unexpected = (
        tuple(sorted(report[f"{kind}_keys"])) for kind in ("missing", "unexpected")
    )
    return ReadTransformer(model, missing, unexpected)


def quiet_transformers() -> None:
    """Have the library print nothing: what is wrong comes as an error."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
