"""Torch on one device without an engine: matrix products, forward passes, a decoder-type model."""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from scripts.benchmark.client import MODEL
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
    """Measures one device; models are loaded now if a scenario needs them."""

    def __init__(self, options: PeerOptions) -> None:
        device = options.torch_device
        self._device = torch.device(device)
        self._card = served_card(device)
        self._tflops_per_s: Figures = {}  # of matrix products, by dtype
        self._backends: dict[str, TorchBackend] = {}
        if "forward" in options.scenarios:
            self._backends = {name: TorchBackend(self._card, device) for name in (RECORDED, EAGER)}
            self._backends[RECORDED].prepare(CPU_TOKENS if self._device.type == "cpu" else None)

    def about(self) -> dict[str, Any]:
        """What the device is."""
        if self._device.type != "cuda":
            return {"gpu": "none: torch on the CPU", "dtype": self._card.dtype}
        found = torch.cuda.get_device_properties(self._device)
        gb = round(found.total_memory / 1e9, 1)
        cuda = {"cuda": torch.version.cuda, "dtype": self._card.dtype}
        return {"gpu": found.name, "gpu_memory_gb": gb, **cuda}

    def vectors(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors (backends, texts, 384) of texts; computed in fours, so that unlike lengths meet."""
        tokenizer = Tokenizer.from_file(str(self._card.path("tokenizer.json")))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._card.max_input_tokens)
        sequences = [np.array(e.ids, np.int32) for e in tokenizer.encode_batch(texts)]
        fours = [sequences[start : start + 4] for start in range(0, len(sequences), 4)]
        backends = self._backends.values()
        return np.array([np.concatenate([b.forward(four) for four in fours]) for b in backends])

    def rate(self, size: int, samples: int) -> list[Measured]:
        """How fast the device multiplies square matrices of random numbers."""
        records: list[Measured] = []
        for dtype in RATE_DTYPES:
            kind = {"device": self._device, "dtype": getattr(torch, dtype)}
            left, right = torch.randn(size, size, **kind), torch.randn(size, size, **kind)
            multiply = functools.partial(_multiply, left, right, torch.empty_like(left))
            seconds = [self._seconds(multiply) for _ in range(samples + 1)][1:]
            tflops_per_s = 2 * size**3 * PRODUCTS / statistics.median(seconds) / 1e12
            self._tflops_per_s[dtype] = tflops_per_s
            case = f"{dtype}, {size} x {size} x {size}"
            records.append(("card", case, {"tflops_per_s": tflops_per_s}))
        return records

    def _seconds(self, work: Callable[[], object]) -> float:
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self._device)
        began_s = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - began_s

    def _compared(self, tflops_per_s: float, dtype: str) -> Figures:
        """With the share of the matrix rate, if that was measured."""
        rate = self._tflops_per_s.get(dtype)
        share = {"of_matrix_rate_percent": 100 * tflops_per_s / rate} if rate else {}
        return {"tflops_per_s": tflops_per_s, **share}

    def forward(self, tokens: list[int], at_least_s: float, queries: int) -> list[Measured]:
        """Each backend with micro-batches of several sizes, one and two threads, and one query."""
        records: list[Measured] = []
        for name, backend in self._backends.items():
            for kind, length in (("128-token", SEQUENCE_TOKENS), ("12-token", QUERY_TOKENS)):
                for size in tokens:
                    batch = _sequences(size, min(length, size))
                    for threads in (1, 2):
                        figures = self._passes(backend, batch, threads, at_least_s)
                        by = ", two threads" if threads > 1 else ""
                        records.append((name, f"{kind} sequences, {size:,} tokens{by}", figures))
            query = _sequences(QUERY_TOKENS, QUERY_TOKENS)
            ms = [1e3 * _time(backend, query) for _ in range(queries)]
            records.append((name, "one query of 12 tokens", percentiles_ms(ms)))
        return records

    def _passes(
        self, backend: TorchBackend, batch: list[TokenIds], threads: int, at_least_s: float
    ) -> Figures:
        start = threading.Barrier(threads)

        def compute(_: int) -> tuple[float, float, int]:
            for _ in range(WARM_UP_PASSES):  # each thread needs buffers of its own
                backend.forward(batch)
            start.wait()
            began_s = ended_s = time.perf_counter()
            passes = 0
            while passes < MIN_PASSES or ended_s - began_s < at_least_s:
                backend.forward(batch)
                passes, ended_s = passes + 1, time.perf_counter()
            return began_s, ended_s, passes

        with ThreadPoolExecutor(threads) as pool:
            began, ended, counts = zip(*pool.map(compute, range(threads)), strict=True)
        seconds, passes = max(ended) - min(began), sum(counts)
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
        """Sequences of a length through random weights of a decoder-type model's shape.

        Args:
            config: the shape, a file of this folder as transformers' Qwen3Config reads it.
            tokens: of the micro-batches.
            compiled: have torch compile the layers; else they are as written.
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
                seconds = [self._seconds(compute) for _ in range(WARM_UP_PASSES + passes)]
            median_s = statistics.median(seconds[WARM_UP_PASSES:])
            figures = {
                "tokens_per_s": size / median_s,
                "pass_ms": 1e3 * median_s,
                **self._compared(flops * size / median_s / 1e12, "bfloat16"),
                "all_passes_s": sum(seconds),  # compiling is part of the first
            }
            form = "compiled" if compiled else "as written"
            records.append((form, f"{length}-token sequences, {size:,} tokens", figures))
        return records


def _multiply(left: torch.Tensor, right: torch.Tensor, result: torch.Tensor) -> None:
    for _ in range(PRODUCTS):
        torch.matmul(left, right, out=result)


def _time(backend: TorchBackend, batch: list[TokenIds]) -> float:
    began_s = time.perf_counter()
    backend.forward(batch)
    return time.perf_counter() - began_s


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
