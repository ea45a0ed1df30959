"""A transformer read from a config and safetensors files: no code of the model's, no pickle.

The one way in which torch reads a model, for its export and for GPUs. Each tensor of the class and
of the files has its place, or nothing is read. Knows nothing of cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    MT5EncoderModel,
    PretrainedConfig,
    PreTrainedModel,
    T5EncoderModel,
    UMT5EncoderModel,
)
from transformers.utils import logging as transformers_logging

from server.inference.safetensors_header import read_shapes
from server.inference.tensor_account import TensorAccount, UnaccountedTensors, listed
from server.inference.torch_account import WantedTensors

# Of models of two halves only the encoder makes embeddings, as in sentence-transformers.
ENCODERS = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}


def read_transformer(config: Path, weights: Iterable[Path], dtype: torch.dtype) -> PreTrainedModel:
    """The transformer, on the CPU, with eager attention.

    What its files may lack, such as a pooler, is NaN in it.

    Args:
        config: transformers' config.json.
        weights: its safetensors files.
        dtype: the weights are converted to it.

    Raises:
        UnaccountedTensors: files and architecture do not fit, see `TensorAccount`.
        Exception: of any class, since a config can be wrong in any way.
    """
    files = tuple(weights)
    found = read_config(config)
    account = _account(found, files)
    account.check()
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    model, report = _class_for(found).from_pretrained(
        None,
        config=found,
        state_dict=tensors,
        dtype=dtype,
        attn_implementation="eager",  # the config could name a kernel to be fetched from a hub
        output_loading_info=True,
    )
    made_up = sorted(set(report["missing_keys"]) - set(account.absent))
    if made_up:  # the account has passed over them
        raise UnaccountedTensors(f"torch made up tensors: {listed(made_up)}")
    differing = [
        f"{target} and {source}"
        for target, source in account.tied  # the library unties them where they differ
        if not _same(tensors, model.base_model_prefix, target, source)
    ]
    if differing:
        raise UnaccountedTensors(
            f"the files hold two names of one tensor of {found.model_type}, which differ: "
            f"{listed(differing)}; get the publisher's whole files"
        )
    for name in account.absent:
        torch.nn.init.constant_(model.get_parameter(name), torch.nan)
    return model


def _same(tensors: Mapping[str, torch.Tensor], prefix: str, *names: str) -> bool:
    """Whether those of these tensors that the files hold are alike, with a prefix or without."""
    stored = [tensors.get(name, tensors.get(f"{prefix}.{name}")) for name in names]
    first, *others = [tensor for tensor in stored if tensor is not None] or [None]
    return all(torch.equal(first, other) for other in others)


def account_for_tensors(config: Path, weights: Iterable[Path]) -> TensorAccount:
    """How far files and architecture agree; no weight is read.

    Raises:
        Exception: of any class, since a config can be wrong in any way.
    """
    return _account(read_config(config), weights)


def _account(config: PretrainedConfig, weights: Iterable[Path]) -> TensorAccount:
    return WantedTensors(_class_for(config), config).account(read_shapes(weights))


def read_config(config: Path) -> PretrainedConfig:
    """A config.json as transformers understands it.

    Raises:
        Exception: of any class, since a config can be wrong in any way.
    """
    quiet_transformers()
    found = AutoConfig.from_pretrained(config, local_files_only=True, trust_remote_code=False)
    if hasattr(found, "quantization_config"):
        raise ValueError("quantised weights are not supported")
    return found


def _class_for(config: PretrainedConfig) -> type[PreTrainedModel]:
    found: type[PreTrainedModel] = ENCODERS.get(config.model_type) or MODEL_MAPPING[type(config)]
    return found


def quiet_transformers() -> None:
    """Have the library print nothing: what is wrong comes as an error."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
