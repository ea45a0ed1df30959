"""What computes or sends the benchmark's texts in a process of its own; see `targets.Peer`.

Each class is a plugin: it imports what it measures where it needs it, and is asked by its methods.
"""

from __future__ import annotations

import abc
import asyncio
import itertools
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import uvloop
from numpy.typing import NDArray

from scripts.benchmark import client
from scripts.benchmark.targets import REPOSITORY, PeerOptions
from scripts.benchmark.texts import num_tokens
from server.inference.cpu_cores import usable_cores

Vectors = NDArray[np.float32]  # (texts, 384)


def seconds_of(work: Callable[..., object], *given: object) -> float:
    """What some work with these arguments takes."""
    started = time.perf_counter()
    work(*given)
    return time.perf_counter() - started


class TextPeer(abc.ABC):
    """Computes vectors of texts, of several requests."""

    @abc.abstractmethod
    def compute(self, requests: list[list[str]], clients: int = 1) -> Vectors:
        """Vectors of all texts of all requests, in order, for so many clients at a time."""

    def warm_up(self, requests: list[list[str]]) -> None:
        """Compute what is like that which is to come."""
        self.compute(requests)

    def embed(self, requests: list[list[str]], clients: int, times: int = 1) -> float:
        """Seconds to compute all requests, so many times."""
        return seconds_of(self.compute, requests * times, clients)

    def each(self, requests: list[list[str]]) -> list[float]:
        """Seconds of each request, one after the other."""
        return [seconds_of(self.compute, [request]) for request in requests]


class OnnxRuntime(TextPeer):
    """Bare ONNX Runtime over the graph that is also served: the least that must be done.

    Sorts texts by length, cuts them into micro-batches, and tokenises and computes these in a thread a
    core over one single-threaded session, which is its fastest way on small matrices.
    """

    def __init__(self, options: PeerOptions) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        folder = REPOSITORY / "models" / client.MODEL
        threads = onnxruntime.SessionOptions()
        threads.intra_op_num_threads = threads.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            folder / "graph.onnx", threads, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(256)
        self._threads = ThreadPoolExecutor(usable_cores())

    def compute(self, requests: list[list[str]], clients: int = 1) -> Vectors:
        # Long texts first, so that the threads end together.
        texts = [text for request in requests for text in request]
        order = sorted(range(len(texts)), key=lambda index: -num_tokens(texts[index]))
        batches: list[list[int]] = [[]]
        for index in order:
            longest = num_tokens(texts[(batches[-1] or [index])[0]])
            if longest * (len(batches[-1]) + 1) > 512:
                batches.append([])
            batches[-1].append(index)

        def compute(batch: list[int]) -> Vectors:
            return self._forward(self._inputs([texts[index] for index in batch]))

        return np.concatenate(list(self._threads.map(compute, batches)))[np.argsort(order)]

    def _inputs(self, texts: list[str]) -> dict[str, NDArray[np.int64]]:
        encodings = self._tokenizer.encode_batch_fast(texts)
        ids = np.array([encoding.ids for encoding in encodings])
        return {"input_ids": ids, "attention_mask": np.array([e.attention_mask for e in encodings])}

    def _forward(self, inputs: dict[str, NDArray[np.int64]]) -> Vectors:
        (vectors,) = self._session.run(["embeddings"], inputs)
        return np.asarray(vectors, np.float32)

    def forward(self, requests: list[list[str]]) -> list[float]:
        """Seconds of each request's forward pass, alone and without tokenising."""
        return [seconds_of(self._forward, inputs) for inputs in map(self._inputs, requests)]


class SentenceTransformers(TextPeer):
    """sentence-transformers' encode, with a thread a core, in the served dtype."""

    def __init__(self, options: PeerOptions) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        from scripts.benchmark.peer_torch import served_card

        torch.set_num_threads(usable_cores())
        device = options.torch_device
        kind = {"dtype": getattr(torch, served_card(device).dtype)}
        folder = str(options.model_folder)
        self._model = SentenceTransformer(folder, device=device, model_kwargs=kind)
        self._batch_sizes = (8, 32, 64) if device == "cpu" else (32, 64, 128, 256, 512)
        self._batch_size = self._batch_sizes[0]

    def warm_up(self, requests: list[list[str]]) -> None:
        """Keep the batch size that takes the least time."""
        seconds = {}
        for size in self._batch_sizes * 2:  # the second time counts, for then it is warm
            self._batch_size = size
            seconds[size] = seconds_of(self.compute, requests)
        self._batch_size = min(seconds, key=lambda size: seconds[size])

    def compute(self, requests: list[list[str]], clients: int = 1) -> Vectors:
        texts = [text for request in requests for text in request]
        vectors = self._model.encode(texts, batch_size=self._batch_size, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


class MatrixProduct:
    """numpy, in a thread a core: what the machine could do."""

    # (rows, inner, columns): the model's own with 512 tokens in a micro-batch, and a square one.
    _shapes = ((512, 384, 1536), (512, 1536, 384), (1024, 1024, 1024))
    _repeats = 7
    _flops = 4e9  # a thread and repeat

    def __init__(self, options: PeerOptions) -> None:
        """Needs nothing."""

    def rate(self) -> float:
        """Floating-point operations a second of float32 products, the best shape's median."""
        threads = usable_cores()
        start = threading.Barrier(threads)

        def multiply(shape: tuple[int, int, int]) -> float:
            rows, inner, columns = shape
            left, right = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
            result = np.empty((rows, columns), np.float32)
            times = round(self._flops / (2 * rows * inner * columns))
            start.wait()
            seconds = seconds_of(lambda: [np.matmul(left, right, result) for _ in range(times)])
            return 2 * rows * inner * columns * times / seconds

        with ThreadPoolExecutor(threads) as pool:
            rates = [
                [sum(pool.map(multiply, [shape] * threads)) for _ in range(self._repeats)]
                for shape in self._shapes
            ]
        return max(map(statistics.median, rates))


class LoadPeer:
    """Clients of one process: they send what was made, again and again, until the time is over."""

    _requests: list[client.Request]

    def __init__(self, options: PeerOptions) -> None:
        """Needs nothing."""

    def make(self, kind: str, seed: str, requests: int, texts: int) -> None:
        """Make the requests that are meant from now on."""
        self._requests = client.requests_of(kind, seed, requests, texts=texts)

    def load(
        self, address: client.Address, clients: int, begin: float, end: float
    ) -> tuple[list[client.Sample], float]:
        """Samples of a load from `begin` to `end` by `time.perf_counter`, and the CPU seconds."""

        async def run() -> list[client.Sample]:
            stop = asyncio.Event()
            await asyncio.sleep(begin - time.perf_counter())
            asyncio.get_running_loop().call_later(end - time.perf_counter(), stop.set)
            requests = itertools.cycle(self._requests)
            return await client.closed_loop(address, requests, clients, stop=stop)

        cpu_s = time.process_time()
        samples = uvloop.run(run())
        return samples, time.process_time() - cpu_s
