"""Fusing what lies between the matrix products of a large model's layers, by torch.compile.

Norms, rotations and gates of decoder-type models are dozens of small kernels a layer when they run
one by one: on an H100 a model of Qwen3-Embedding-0.6B's shape reaches 22 % of the card's matrix
rate so, and 54 % fused (scripts/bench.py --only decoder).
Needs Triton, which comes with torch, and a C compiler.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import shutil
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from server.inference.compilations import COMPILATIONS
from server.inference.torch_last_layer import layers_of

log = logging.getLogger(__name__)

# Smaller encoders spend little between their products, and compiling takes a quarter of a minute.
MIN_PARAMETERS = 100_000_000
COMPILERS = ("gcc", "clang", "cc")
# Of one model on one device. What is compiled holds for all numbers of tokens, texts and tokens a
# text, but for those that were equal to each other, or 1, when it was compiled: two or three do.
MOST_COMPILED = 16
# All layers of all models on all devices are one function to torch, which after 8 compilations would
# compute everything else uncompiled, without an error.
_MOST_OF_ALL = 256
_TAKES_LIMIT = "recompile_limit" in inspect.signature(torch.compile).parameters  # from 2.13 on


def worth_compiling(transformer: PreTrainedModel) -> bool:
    """Whether the model is large enough, and this machine can compile."""
    embeddings = transformer.get_input_embeddings()
    skipped = {id(parameter) for parameter in embeddings.parameters()}
    parameters = sum(p.numel() for p in transformer.parameters() if id(p) not in skipped)
    if parameters < MIN_PARAMETERS:
        return False
    compilers = (os.environ.get("CC"), *COMPILERS)
    if importlib.util.find_spec("triton") and any(c and shutil.which(c) for c in compilers):
        return True
    log.warning("without Triton and a C compiler this model takes about twice the time")
    return False


def compile_layers(transformer: PreTrainedModel, backend: str = "inductor") -> None:
    """Have each layer compiled when it first computes; all share what is compiled.

    Args:
        backend: torch's name of what compiles.
    """
    _watch()
    if not _TAKES_LIMIT:
        torch._dynamo.config.recompile_limit = _MOST_OF_ALL  # noqa: SLF001 (no public name)
    limit = {"recompile_limit": _MOST_OF_ALL} if _TAKES_LIMIT else {}
    for layer in layers_of(transformer):
        layer.compile(dynamic=True, backend=backend, **limit)


def release_layers(transformer: PreTrainedModel) -> None:
    """Let the layers compute as they are written again."""
    for layer in layers_of(transformer):
        layer._compiled_call_impl = None  # noqa: SLF001 (torch has no way back)


def are_compiled(transformer: PreTrainedModel) -> bool:
    """Whether `compile_layers` is in force."""
    return any(layer._compiled_call_impl is not None for layer in layers_of(transformer))  # noqa: SLF001


def warm_up(forward: Callable[[Sequence[int]], object], packings: Sequence[Sequence[int]]) -> bool:
    """Compute such packings until nothing is compiled any more; False if that has no end.

    Args:
        forward: computes sequences of these lengths.
    """
    began = before = COMPILATIONS.count
    while True:
        for lengths in packings:
            forward(lengths)
            if COMPILATIONS.count - began > MOST_COMPILED:
                return False
        if COMPILATIONS.count == before:
            return True
        before = COMPILATIONS.count


def _watch() -> None:
    from torch._dynamo.callback import callback_handler

    if _note not in callback_handler.start_callbacks:  # else since an earlier model
        callback_handler.register_start_callback(_note)


def _note(*_: object) -> None:
    COMPILATIONS.note()
