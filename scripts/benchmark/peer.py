"""A process that computes the benchmark's texts without any server between.

Run as a child, so that its threads, memory and CPU seconds are its own:
`python -m scripts.benchmark.peer KIND [ARGUMENT]`. Reads a JSON object a line (`do` and what that
wants) and answers each with one. Ends when its standard input does.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

# Before numpy and ONNX Runtime are loaded: products by exactly the threads that are started here,
# and nothing reported to Microsoft.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}

import numpy as np
from numpy.typing import NDArray

from scripts.benchmark.texts import make_requests, num_tokens
from server.inference.cpu_cores import usable_cores

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL_FOLDER = REPOSITORY / "models" / "all-MiniLM-L6-v2"
BATCH_TOKENS = 512
MAX_TOKENS = 256
BATCH_SIZES = (8, 32, 64)
GPU_BATCH_SIZES = (32, 64, 128, 256, 512)
# (rows, inner, columns): the model's own with 512 tokens in a micro-batch, and a large square one.
SHAPES = ((512, 384, 1536), (512, 1536, 384), (1024, 1024, 1024))
RATE_REPEATS = 7
RATE_FLOPS = 4e9  # a thread and repeat

Vectors = NDArray[np.float32]


class Peer(Protocol):
    """What computes vectors."""

    def embed(self, requests: list[list[str]], clients: int) -> Vectors:
        """Vectors of all texts of all requests, in order."""


class OnnxRuntime:
    """Bare ONNX Runtime over the graph that is also served: the least that must be done.

    Tokenises all texts, sorts them by length, cuts them into micro-batches and computes these in a
    thread a core over one single-threaded session, which is its fastest way on small matrices.
    """

    def __init__(self) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            MODEL_FOLDER / "graph.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._threads = ThreadPoolExecutor(usable_cores())

    def embed(self, requests: list[list[str]], clients: int) -> Vectors:
        texts = [text for request in requests for text in request]
        sequences = [e.ids for e in self._tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(texts)), key=lambda index: len(sequences[index]))
        batches: list[list[int]] = [[]]
        for index in reversed(order):  # long ones first, so that the threads end together
            longest = len(sequences[(batches[-1] or [index])[0]])
            if longest * (len(batches[-1]) + 1) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(index)
        vectors = np.empty((len(texts), 384), np.float32)

        def compute(batch: list[int]) -> None:
            vectors[batch] = self.forward([sequences[index] for index in batch])

        list(self._threads.map(compute, batches))
        return vectors

    def forward(self, sequences: Sequence[Sequence[int]]) -> Vectors:
        """One micro-batch."""
        ids = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        (vectors,) = self._session.run(["embeddings"], {"input_ids": ids, "attention_mask": mask})
        return np.asarray(vectors, np.float32)

    def forward_seconds(self, texts: list[str]) -> list[float]:
        """Seconds of each text's forward pass, alone and without tokenising."""
        seconds = []
        for text in texts:
            ids = self._tokenizer.encode(text).ids
            started = time.perf_counter()
            self.forward([ids])
            seconds.append(time.perf_counter() - started)
        return seconds


class SentenceTransformers:
    """sentence-transformers' encode, with a thread a core and its best batch size.

    Args:
        folder: the model's official folder.
        device: as torch names it.
        dtype: of the weights; default: as they are.
    """

    def __init__(self, folder: str, device: str = "cpu", dtype: str | None = None) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(usable_cores())
        self._model = SentenceTransformer(
            folder, device=device, model_kwargs={"dtype": getattr(torch, dtype)} if dtype else None
        )
        self._batch_sizes = BATCH_SIZES if device == "cpu" else GPU_BATCH_SIZES
        self._batch_size = self._batch_sizes[0]

    def tune(self, requests: list[list[str]]) -> int:
        """Keep the batch size that takes the least time for these texts, and tell it."""
        seconds = {}
        for size in self._batch_sizes:
            self._batch_size = size
            seconds[size] = _seconds_to_embed(self, requests, 1)
        self._batch_size = min(seconds, key=lambda size: seconds[size])
        return self._batch_size

    def embed(self, requests: list[list[str]], clients: int) -> Vectors:
        texts = [text for request in requests for text in request]
        vectors = self._model.encode(texts, batch_size=self._batch_size, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


def rate_flops_per_s(threads: int) -> float:
    """Floating-point operations a second of float32 matrix products, the best shape's median."""
    start = threading.Barrier(threads)

    def multiply(shape: tuple[int, int, int]) -> float:
        rows, inner, columns = shape
        left = np.ones((rows, inner), np.float32)
        right = np.ones((inner, columns), np.float32)
        result = np.empty((rows, columns), np.float32)
        repeats = max(1, round(RATE_FLOPS / (2 * rows * inner * columns)))
        start.wait()
        started = time.perf_counter()
        for _ in range(repeats):
            np.matmul(left, right, out=result)
        return 2 * rows * inner * columns * repeats / (time.perf_counter() - started)

    with ThreadPoolExecutor(threads) as pool:
        medians = []
        for shape in SHAPES:
            rates = [sum(pool.map(multiply, [shape] * threads)) for _ in range(RATE_REPEATS)]
            medians.append(statistics.median(rates))
    return max(medians)


class Worker:
    """Carries out what is asked on standard input."""

    def __init__(self, kind: str, arguments: Sequence[str]) -> None:
        kinds: dict[str, Callable[..., Peer]] = {
            "onnxruntime": OnnxRuntime,
            "sentence-transformers": SentenceTransformers,
            "engine": _engine,
        }
        self._peer = kinds[kind](*arguments) if kind in kinds else None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one line."""
        peer = self._peer
        match asked["do"]:
            case "rate":
                return {"flops_per_s": rate_flops_per_s(usable_cores())}
            case "warm up" if isinstance(peer, SentenceTransformers):
                return {"batch_size": peer.tune(asked["requests"])}
            case "warm up" if peer is not None:
                peer.embed(asked["requests"], 1)
                return {}
            case "forward" if isinstance(peer, OnnxRuntime):
                return {"seconds": peer.forward_seconds(asked["texts"])}
            case "vectors" if peer is not None:
                return {"vectors": peer.embed([asked["texts"]], 1).tolist()}
            case "embed" if peer is not None:
                started = time.perf_counter()
                peer.embed(asked["requests"], asked["clients"])
                return {"seconds": time.perf_counter() - started}
            case "index" if peer is not None:
                return _index(peer, asked)
            case "each" if peer is not None:
                seconds = []
                for text in asked["texts"]:
                    started = time.perf_counter()
                    peer.embed([[text]], 1)
                    seconds.append(time.perf_counter() - started)
                return {"seconds": seconds}
        raise ValueError(f"cannot do {asked['do']}")


def _index(peer: Peer, asked: dict[str, Any]) -> dict[str, Any]:
    """Texts that are made here, embedded as often as it takes to be at it for `at_least_s`."""
    requests = make_requests(asked["kind"], asked["seed"], asked["requests"], texts=asked["texts"])
    seconds = _seconds_to_embed(peer, requests, asked["clients"])  # a warm-up as well
    times = math.ceil(asked["at_least_s"] / seconds)
    seconds = _seconds_to_embed(peer, requests * times, asked["clients"])
    lengths = [num_tokens(text) for request in requests for text in request]
    return {"seconds": seconds, "times": times, "lengths": lengths}


def _seconds_to_embed(peer: Peer, requests: list[list[str]], clients: int) -> float:
    started = time.perf_counter()
    peer.embed(requests, clients)
    return time.perf_counter() - started


def _engine(device: str = "cpu") -> Peer:
    from scripts.benchmark.engine_peer import EnginePeer

    return EnginePeer(device)


def answer_lines(start: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Answer lines until there are no more.

    Args:
        start: makes what answers; prints where it does no harm.
    """
    # Libraries print; the answers get a pipe of their own.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        answer = start()
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    answer_lines(lambda: Worker(sys.argv[1], sys.argv[2:]).answer)
