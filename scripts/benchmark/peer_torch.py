"""Torch on one device without an engine: matrix products, forward passes, a decoder-type model."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from scripts.benchmark.client import MODEL
from scripts.benchmark.peers import seconds_of
from scripts.benchmark.results import Figures, model_flops, percentiles_ms
from scripts.benchmark.targets import PeerOptions
from server.catalog.card import Card
from server.catalog.registry import read_registry
from server.inference.backend import TokenIds
from server.inference.backend_kinds import choose_backend
from server.inference.torch_backend import TorchBackend
from server.inference.torch_compile import compile_layers
from server.inference.torch_modules import PackedModule, load_dense_layers
from server.settings import load_settings

Measured = tuple[str, str, Figures]  # target, case, figures

RECORDED, EAGER = "recorded", "launched one by one"
RATE_DTYPES = ("bfloat16", "float16")
PRODUCTS = 10  # between two looks at the clock
SEQUENCE_TOKENS, QUERY_TOKENS = 128, 12
ORDINARY_IDS = (2_000, 30_000)  # BERT's words
CPU_TOKENS = 256  # of a micro-batch, where there is no card
MIN_PASSES = 3
WARM_UP_PASSES = 3


def served_card(device: str) -> Card:
    """The model's card as a server would serve it on this device; on the CPU in float32."""
    settings = load_settings()
    card = read_registry(*settings.model_folders()).resolve(MODEL)
    dtype = None if settings.dtype == "auto" else settings.dtype
    return choose_backend(card, (device,), dtype).card


class TorchPeer:
    """Measures one device."""

    def __init__(self, options: PeerOptions) -> None:
        self._device = torch.device(options.torch_device)
        self._card = served_card(options.torch_device)
        self._tflops_per_s: Figures = {}  # of matrix products, by dtype

    def about(self) -> dict[str, Any]:
        """What the device is."""
        known = {"cuda": torch.version.cuda, "dtype": self._card.dtype}
        if self._device.type == "cpu":
            return {"gpu": "none: torch on the CPU", **known}
        found = torch.cuda.get_device_properties(self._device)
        return {"gpu": found.name, "gpu_memory_gb": round(found.total_memory / 1e9, 1), **known}

    def rate(self, size: int, samples: int) -> list[Measured]:
        """How fast the device multiplies square matrices of random numbers."""
        records: list[Measured] = []
        for dtype in RATE_DTYPES:
            kind = {"device": self._device, "dtype": getattr(torch, dtype)}
            left, right = torch.randn(size, size, **kind), torch.randn(size, size, **kind)
            multiply = functools.partial(torch.matmul, left, right, out=torch.empty_like(left))
            median_s = self._median_s(multiply, 1, samples, PRODUCTS)
            self._tflops_per_s[dtype] = 2 * size**3 / median_s / 1e12
            figures = {"tflops_per_s": self._tflops_per_s[dtype]}
            records.append(("card", f"{dtype}, {size} x {size} x {size}", figures))
        return records

    def _median_s(
        self, work: Callable[[], object], warm_up: int, samples: int, times: int = 1
    ) -> float:
        """Of samples that do the work so many times, after some that do not count."""
        synchronize = torch.get_device_module(self._device).synchronize

        def sample() -> None:
            for _ in range(times):
                work()
            synchronize(self._device)

        seconds = [seconds_of(sample) for _ in range(warm_up + samples)]
        return statistics.median(seconds[warm_up:]) / times

    def _compared(self, tflops_per_s: float, dtype: str) -> Figures:
        """With the share of the matrix rate, if that was measured."""
        rate = self._tflops_per_s.get(dtype)
        share = {"of_matrix_rate_percent": 100 * tflops_per_s / rate} if rate else {}
        return {"tflops_per_s": tflops_per_s, **share}

    def forward(self, tokens: list[int], at_least_s: float, queries: int) -> list[Measured]:
        """The backend with micro-batches of several sizes, one and two threads, and one query."""
        records: list[Measured] = []
        for name in (RECORDED, EAGER):
            backend = TorchBackend(self._card, str(self._device))
            if name == RECORDED:
                backend.prepare(CPU_TOKENS if self._device.type == "cpu" else None)
            for size, threads in itertools.product(tokens, (1, 2)):
                batch = _sequences(size, min(SEQUENCE_TOKENS, size))
                figures = self._passes(backend, batch, threads, at_least_s)
                by = ", two threads" if threads > 1 else ""
                case = f"{SEQUENCE_TOKENS}-token sequences, {size:,} tokens{by}"
                records.append((name, case, figures))
            query = _sequences(QUERY_TOKENS, QUERY_TOKENS)
            ms = [1e3 * seconds_of(backend.forward, query) for _ in range(queries)]
            records.append((name, "one query of 12 tokens", percentiles_ms(ms)))
        return records

    def _passes(
        self, backend: TorchBackend, batch: list[TokenIds], threads: int, at_least_s: float
    ) -> Figures:
        start = threading.Barrier(threads)

        def compute(passes: int) -> None:
            start.wait()
            for _ in range(passes):
                backend.forward(batch)

        with ThreadPoolExecutor(threads) as pool:

            def seconds_for(passes: int) -> float:
                return seconds_of(lambda: list(pool.map(compute, [passes] * threads)))

            seconds_for(WARM_UP_PASSES)  # each thread needs buffers of its own
            needed = math.ceil(MIN_PASSES * at_least_s / seconds_for(MIN_PASSES))
            each = max(MIN_PASSES, needed)
            seconds, passes = seconds_for(each), each * threads
        lengths = list(map(len, batch))
        tflops_per_s = passes * sum(map(model_flops, lengths)) / seconds / 1e12
        return {
            "tokens_per_s": passes * sum(lengths) / seconds,
            "pass_ms": 1e3 * seconds * threads / passes,
            **self._compared(tflops_per_s, self._card.dtype),
        }

    def decoder(
        self, *, config: str, length: int, tokens: list[int], passes: int, compiled: bool
    ) -> list[Measured]:
        """Micro-batches of sequences of a length through random weights of a decoder-type model.

        `config` is its shape, a file of this folder as transformers' Qwen3Config reads it. Torch
        compiles the layers, or they are as written.
        """
        shape = transformers.Qwen3Config.from_json_file(Path(__file__).with_name(config))
        with torch.device(self._device):
            transformer = transformers.AutoModel.from_config(shape, dtype=torch.bfloat16)
        transformer.eval().requires_grad_(False)
        if compiled:
            compile_layers(transformer)
        # MiniLM's head: it only normalises.
        encoder = PackedModule(transformer, load_dense_layers(self._card), "last_token")
        encoder.attend()
        flops = _decoder_flops(transformer, length)
        records: list[Measured] = []
        for size in tokens:
            whole = {"dtype": torch.int32, "device": self._device}
            ids = torch.randint(0, 1_000, (size,), **whole)
            bounds = torch.arange(0, size + 1, length, **whole)
            compute = functools.partial(encoder.forward, ids, bounds, length)
            with torch.inference_mode():
                median_s = self._median_s(compute, WARM_UP_PASSES, passes)
            figures = {
                "tokens_per_s": size / median_s,
                "pass_ms": 1e3 * median_s,
                **self._compared(flops * size / median_s / 1e12, "bfloat16"),
            }
            form = "compiled" if compiled else "as written"
            records.append((form, f"{length}-token sequences, {size:,} tokens", figures))
        return records


def _decoder_flops(transformer: transformers.PreTrainedModel, length: int) -> float:
    """Floating-point operations a token, in sequences of this length: see `model_flops`.

    The table of token vectors multiplies nothing; causal attention sees half of the pairs.
    """
    config = transformer.config
    table = transformer.get_input_embeddings().weight.numel()
    parameters = sum(p.numel() for p in transformer.parameters()) - table
    attended = 4 * config.num_attention_heads * config.head_dim * length / 2
    return float(2 * parameters + attended * config.num_hidden_layers)


def _sequences(tokens: int, length: int) -> list[TokenIds]:
    """As many sequences of this length as fit, one at least."""
    shape = (max(1, tokens // length), length)
    return list(np.random.default_rng(0).integers(*ORDINARY_IDS, shape, np.int32))
