"""A process that computes on one card without an engine: matrix products, forward passes.

Run as a child: `python -m scripts.benchmark.gpu_peer DEVICE [SCENARIO ...]`, and asked as `peer` is.
What it is asked to measure it answers as `records`: target, case, figures.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from scripts.benchmark.gpu_card import served_card
from scripts.benchmark.peer import answer_lines
from scripts.benchmark.results import model_flops, percentiles_ms
from server.catalog.card import TOKENIZER_FILE
from server.errors import first_line
from server.inference.backend import TokenIds
from server.inference.direct import embed_texts
from server.inference.loader import Encoder
from server.inference.tokenizer import Tokenizer
from server.inference.torch_backend import TorchBackend
from server.inference.torch_compile import compile_layers
from server.inference.torch_modules import PackedModule, load_dense_layers

Measured = tuple[str, str, dict[str, float]]  # target, case, figures

RECORDED, EAGER = "recorded", "launched one by one"
AS_WRITTEN, COMPILED = "as written", "compiled"
RATE_DTYPES = ("bfloat16", "float16")
PRODUCTS = 10  # between two looks at the clock
SEQUENCE_TOKENS, QUERY_TOKENS = 128, 12
ORDINARY_IDS = (2_000, 30_000)  # BERT's words
CPU_TOKENS = 256  # of a micro-batch, where there is no card
MIN_PASSES = 3
WARM_UP_PASSES = 3


class GpuPeer:
    """Measures one card.

    Args:
        device: as torch names it.
        scenarios: what it will be asked; models are loaded for it now.
    """

    def __init__(self, device: str, scenarios: Sequence[str]) -> None:
        self._device = torch.device(device)
        self._card = served_card(device)
        self._matrix_rates: dict[str, float] = {}
        self._backends: dict[str, TorchBackend] = {}
        if "forward" in scenarios:
            self._backends = {name: TorchBackend(self._card, device) for name in (RECORDED, EAGER)}
            self._backends[RECORDED].prepare(CPU_TOKENS if self._device.type == "cpu" else None)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one line; what goes wrong is told, and the next line answered."""
        do: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "about": lambda _: self._about(),
            "rate": self._rate,
            "vectors": self._vectors,
            "forward": self._forward,
            "decoder": self._decoder,
        }
        try:
            return do[asked["do"]](asked)
        except Exception as error:  # kernels and compilers fail in many ways
            return {"problem": first_line(error)}

    def _about(self) -> dict[str, Any]:
        if self._device.type != "cuda":
            return {"gpu": "none: torch on the CPU", "dtype": self._card.dtype}
        found = torch.cuda.get_device_properties(self._device)
        return {
            "gpu": found.name,
            "gpu_memory_gb": round(found.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "dtype": self._card.dtype,
        }

    def _rate(self, asked: dict[str, Any]) -> dict[str, Any]:
        size, samples = asked["size"], asked["samples"]
        records: list[Measured] = []
        for dtype in RATE_DTYPES:
            rate = self._matrix_rates[dtype] = self._measure_rate(dtype, size, samples)
            figures = {"tflops_per_s": rate / 1e12}
            records.append(("card", f"{dtype}, {size} x {size} x {size}", figures))
        return {"records": records}

    def _measure_rate(self, dtype: str, size: int, samples: int) -> float:
        """Floating-point operations a second of products of random square matrices."""
        shape = {"device": self._device, "dtype": getattr(torch, dtype)}
        left, right = torch.randn(size, size, **shape), torch.randn(size, size, **shape)
        result = torch.empty(size, size, **shape)

        def multiply() -> None:
            for _ in range(PRODUCTS):
                torch.matmul(left, right, out=result)

        seconds = [self._seconds(multiply) for _ in range(samples + 1)][1:]
        return float(2 * size**3 * PRODUCTS / statistics.median(seconds))

    def _seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        began_s = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began_s

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _compared(self, tflops_per_s: float, dtype: str) -> dict[str, float]:
        figures = {"tflops_per_s": tflops_per_s}
        if dtype in self._matrix_rates:
            share = tflops_per_s * 1e12 / self._matrix_rates[dtype]
            figures["of_matrix_rate_percent"] = 100 * share
        return figures

    def _vectors(self, asked: dict[str, Any]) -> dict[str, Any]:
        """By backend, the vectors of texts."""
        tokenizer = Tokenizer(self._card.path(TOKENIZER_FILE), self._card.max_input_tokens)
        backends = tuple(self._backends.values())
        encoder = Encoder(tokenizer, backends, self._card.embedding_dim)
        return {
            name: embed_texts(encoder, asked["texts"], backend=backend).tolist()
            for name, backend in self._backends.items()
        }

    def _forward(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Each backend with micro-batches of several sizes, one and two threads, and one query."""
        records: list[Measured] = []
        for name, backend in self._backends.items():
            for kind, length in (("128-token", SEQUENCE_TOKENS), ("12-token", QUERY_TOKENS)):
                for tokens in asked["tokens"]:
                    batch = _sequences(tokens, min(length, tokens))
                    for threads in (1, 2):
                        figures = self._passes(backend, batch, threads, asked["at_least_s"])
                        by = ", two threads" if threads > 1 else ""
                        case = f"{kind} sequences, {tokens:,} tokens{by}"
                        records.append((name, case, figures))
            query = _sequences(QUERY_TOKENS, QUERY_TOKENS)
            ms = [1e3 * _time(backend, query) for _ in range(asked["queries"])]
            records.append((name, "one query of 12 tokens", percentiles_ms(ms)))
        return {"records": records}

    def _passes(
        self, backend: TorchBackend, batch: list[TokenIds], threads: int, at_least_s: float
    ) -> dict[str, float]:
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
            seen = list(pool.map(compute, range(threads)))
        seconds = max(ended for _, ended, _ in seen) - min(began for began, _, _ in seen)
        passes = sum(passes for _, _, passes in seen)
        lengths = list(map(len, batch))
        tflops_per_s = passes * sum(map(model_flops, lengths)) / seconds / 1e12
        return {
            "tokens_per_s": passes * sum(lengths) / seconds,
            "pass_ms": 1e3 * seconds * threads / passes,
            **self._compared(tflops_per_s, self._card.dtype),
        }

    def _decoder(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Random weights of a decoder-type model's shape, as written or compiled."""
        shape, length = asked["shape"], asked["sequence_tokens"]
        with torch.device(self._device):
            transformer = transformers.AutoModel.from_config(
                transformers.Qwen3Config(**shape), dtype=torch.bfloat16
            )
        transformer.eval().requires_grad_(False)
        if asked["compiled"]:
            compile_layers(transformer)
        # MiniLM's: it only normalises.
        encoder = PackedModule(transformer, load_dense_layers(self._card), "last_token")
        encoder.attend()
        form = COMPILED if asked["compiled"] else AS_WRITTEN
        flops = _decoder_flops(transformer, length)
        records: list[Measured] = []
        for tokens in asked["tokens"]:
            began_s = time.perf_counter()
            seconds = self._decoder_seconds(encoder, tokens, length, asked["passes"])
            figures = {
                "tokens_per_s": tokens / seconds,
                "pass_ms": 1e3 * seconds,
                **self._compared(flops * tokens / seconds / 1e12, "bfloat16"),
                "all_passes_s": time.perf_counter() - began_s,  # compiling is part of the first
            }
            records.append((form, f"{length}-token sequences, {tokens:,} tokens", figures))
        return {"records": records}

    def _decoder_seconds(
        self, encoder: PackedModule, tokens: int, length: int, passes: int
    ) -> float:
        """Median seconds of a pass."""
        ids = torch.randint(0, 1_000, (tokens,), dtype=torch.int32, device=self._device)
        bounds = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=self._device)

        def compute() -> None:
            encoder(ids, bounds, length)

        with torch.inference_mode():
            for _ in range(WARM_UP_PASSES):
                compute()
            return statistics.median(self._seconds(compute) for _ in range(passes))


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
    draw = np.random.default_rng(0)
    ids: NDArray[np.int32] = draw.integers(
        *ORDINARY_IDS, (max(1, tokens // length), length), np.int32
    )
    return list(ids)


def _time(backend: TorchBackend, batch: list[TokenIds]) -> float:
    began_s = time.perf_counter()
    backend.forward(batch)
    return time.perf_counter() - began_s


if __name__ == "__main__":
    answer_lines(lambda: GpuPeer(sys.argv[1], sys.argv[2:]).answer)
