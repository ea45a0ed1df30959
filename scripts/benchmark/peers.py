"""What computes or sends the benchmark's texts in a process of its own; see `targets.Peer`.

Each class is a plugin: it imports what it measures where it needs it, and is asked by its methods.
Texts are made here, by the seeds that the clients' texts are made by, before any time is measured.
"""

from __future__ import annotations

import abc
import asyncio
import itertools
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from scripts.benchmark import client
from scripts.benchmark.targets import REPOSITORY, PeerOptions, fetch_model
from scripts.benchmark.texts import make_requests, num_tokens
from server.inference.cpu_cores import usable_cores

Vectors = NDArray[np.float32]  # (texts, 384)


class TextPeer(abc.ABC):
    """Computes vectors of texts."""

    def __init__(self, options: PeerOptions) -> None:
        self.requests: list[list[str]] = []

    @abc.abstractmethod
    def compute(self, requests: list[list[str]], clients: int) -> Vectors:
        """Vectors of all texts of all requests, in order."""

    def make(self, kind: str, seed: str, requests: int, texts: int) -> list[int]:
        """Make the requests that are meant from now on; the tokens of each text."""
        self.requests = make_requests(kind, seed, requests, texts=texts)
        return [num_tokens(text) for request in self.requests for text in request]

    def vectors(self, texts: list[str]) -> Vectors:
        """Vectors of these texts."""
        return self.compute([texts], 1)

    def warm_up(self) -> None:
        """Compute once what is made."""
        self.embed(1)

    def embed(self, clients: int, times: int = 1) -> float:
        """Seconds to compute what is made, so many times, for so many clients at a time."""
        return self._seconds(self.requests * times, clients)

    def each(self) -> list[float]:
        """Seconds of each request, one after the other."""
        return [self._seconds([request], 1) for request in self.requests]

    def _seconds(self, requests: list[list[str]], clients: int) -> float:
        started = time.perf_counter()
        self.compute(requests, clients)
        return time.perf_counter() - started


class OnnxRuntime(TextPeer):
    """Bare ONNX Runtime over the graph that is also served: the least that must be done.

    Tokenises all texts, sorts them by length, cuts them into micro-batches and computes these in a
    thread a core over one single-threaded session, which is its fastest way on small matrices.
    """

    def __init__(self, options: PeerOptions) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        super().__init__(options)
        folder = REPOSITORY / "models" / client.MODEL
        threads = onnxruntime.SessionOptions()
        threads.intra_op_num_threads = threads.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            folder / "graph.onnx", threads, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(256)
        self._threads = ThreadPoolExecutor(usable_cores())

    def compute(self, requests: list[list[str]], clients: int) -> Vectors:
        texts = [text for request in requests for text in request]
        sequences = [e.ids for e in self._tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(texts)), key=lambda index: len(sequences[index]))
        batches: list[list[int]] = [[]]
        for index in reversed(order):  # long ones first, so that the threads end together
            longest = len(sequences[(batches[-1] or [index])[0]])
            if longest * (len(batches[-1]) + 1) > 512:
                batches.append([])
            batches[-1].append(index)
        vectors = np.empty((len(texts), 384), np.float32)

        def compute(batch: list[int]) -> None:
            vectors[batch] = self._pass([sequences[index] for index in batch])

        list(self._threads.map(compute, batches))
        return vectors

    def _pass(self, sequences: list[list[int]]) -> Vectors:
        ids = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        (vectors,) = self._session.run(["embeddings"], {"input_ids": ids, "attention_mask": mask})
        return np.asarray(vectors, np.float32)

    def forward(self) -> list[float]:
        """Seconds of each made text's forward pass, alone and without tokenising."""
        seconds = []
        for (text,) in self.requests:
            ids = self._tokenizer.encode(text).ids
            started = time.perf_counter()
            self._pass([ids])
            seconds.append(time.perf_counter() - started)
        return seconds


class SentenceTransformers(TextPeer):
    """sentence-transformers' encode, with a thread a core, in the served dtype."""

    def __init__(self, options: PeerOptions) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        from scripts.benchmark.peer_torch import served_card

        super().__init__(options)
        torch.set_num_threads(usable_cores())
        device = options.torch_device
        folder = str(options.model_folder or fetch_model(options.cache))
        dtype = getattr(torch, served_card(device).dtype)
        self._model = SentenceTransformer(folder, device=device, model_kwargs={"dtype": dtype})
        self._batch_sizes = (8, 32, 64) if device == "cpu" else (32, 64, 128, 256, 512)
        self._batch_size = self._batch_sizes[0]

    def warm_up(self) -> None:
        """Keep the batch size that takes the least time for what is made."""
        seconds = {}
        for size in self._batch_sizes:
            self._batch_size = size
            seconds[size] = self.embed(1)
        self._batch_size = min(seconds, key=lambda size: seconds[size])

    def compute(self, requests: list[list[str]], clients: int) -> Vectors:
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
            flops = 2 * rows * inner * columns
            times = max(1, round(self._flops / flops))
            start.wait()
            started = time.perf_counter()
            for _ in range(times):
                np.matmul(left, right, out=result)
            return flops * times / (time.perf_counter() - started)

        medians = []
        with ThreadPoolExecutor(threads) as pool:
            for shape in self._shapes:
                rates = [sum(pool.map(multiply, [shape] * threads)) for _ in range(self._repeats)]
                medians.append(statistics.median(rates))
        return max(medians)


class LoadPeer:
    """Clients of one process: they send what was made, again and again, until the time is over."""

    def __init__(self, options: PeerOptions) -> None:
        self._requests: list[client.Request] = []

    def make(self, kind: str, seed: str, requests: int, texts: int) -> None:
        """Make the requests that are meant from now on."""
        self._requests = client.requests_of(kind, seed, requests, texts=texts)

    def load(
        self, address: client.Address, clients: int, begin: float, end: float
    ) -> tuple[list[client.Sample], float]:
        """Samples of a load from `begin` to `end`, on the clock of `time.perf_counter`; CPU seconds."""
        cpu_s = time.process_time()
        samples = client.run(self._load(address, clients, begin, end))
        return samples, time.process_time() - cpu_s

    async def _load(
        self, address: client.Address, clients: int, begin: float, end: float
    ) -> list[client.Sample]:
        stop = asyncio.Event()
        await asyncio.sleep(begin - time.perf_counter())
        asyncio.get_running_loop().call_later(end - time.perf_counter(), stop.set)
        requests = itertools.cycle(self._requests)
        return await client.closed_loop(address, requests, clients, stop=stop)
