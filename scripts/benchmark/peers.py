"""What computes or sends the benchmark's texts in a process of its own; see `targets.Peer`.

Each class is a plugin: it imports what it measures where it needs it, and is asked by its methods.
"""

from __future__ import annotations

import abc
import asyncio
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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


class GraphPeer(TextPeer):
    """A bare library over the graph that is also served: the least that must be done.

    Sorts texts by length, cuts them into micro-batches, and tokenises and computes these in a thread a
    core, each on one core, which is the fastest way on small matrices.
    """

    _folder = REPOSITORY / "models" / client.MODEL

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(256)
        self._threads = ThreadPoolExecutor(usable_cores())

    @abc.abstractmethod
    def _forward(self, inputs: dict[str, NDArray[np.int64]], *, alone: bool = True) -> Vectors:
        """One micro-batch's vectors; `alone` says that no other is computed meanwhile."""

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
            inputs = self._inputs([texts[index] for index in batch])
            return self._forward(inputs, alone=len(batches) == 1)

        return np.concatenate(list(self._threads.map(compute, batches)))[np.argsort(order)]

    def _inputs(self, texts: list[str]) -> dict[str, NDArray[np.int64]]:
        encodings = self._tokenizer.encode_batch_fast(texts)
        ids = np.array([encoding.ids for encoding in encodings])
        return {"input_ids": ids, "attention_mask": np.array([e.attention_mask for e in encodings])}

    def forward(self, requests: list[list[str]]) -> list[float]:
        """Seconds of each request's forward pass, alone and without tokenising."""
        return [seconds_of(self._forward, inputs) for inputs in map(self._inputs, requests)]


class OnnxRuntime(GraphPeer):
    """ONNX Runtime in float32: one session with one thread."""

    def __init__(self, options: PeerOptions) -> None:
        import onnxruntime

        super().__init__()
        threads = onnxruntime.SessionOptions()
        threads.intra_op_num_threads = threads.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self._folder / "graph.onnx", threads, providers=["CPUExecutionProvider"]
        )

    def _forward(self, inputs: dict[str, NDArray[np.int64]], *, alone: bool = True) -> Vectors:
        (vectors,) = self._session.run(["embeddings"], inputs)
        return np.asarray(vectors, np.float32)


class OpenVino(GraphPeer):
    """OpenVINO in bfloat16, or with the matrices that the server makes int8.

    A micro-batch that is alone is computed by all cores together.
    """

    def __init__(self, options: PeerOptions) -> None:
        from server.catalog.registry import read_registry
        from server.inference.openvino_int8 import quantize
        from server.inference.openvino_library import CORE, ov

        super().__init__()
        recipe = read_registry(self._folder.parent).resolve(client.MODEL).int8_recipe
        model = CORE.read_model(self._folder / "graph.onnx")
        if options.dtype == "int8":
            quantize(model, recipe)
        cores = usable_cores()
        properties = {
            "INFERENCE_PRECISION_HINT": ov.Type.bf16,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": recipe.group_size if options.dtype == "int8" else 0,
            "INFERENCE_NUM_THREADS": cores,
            "ENABLE_CPU_PINNING": False,
        }
        self._forms = {
            alone: CORE.compile_model(model, "CPU", {**properties, "NUM_STREAMS": streams})
            for alone, streams in ((True, 1), (False, cores))
        }
        self._idle: dict[bool, list[Any]] = {True: [], False: []}  # requests, by form

    def _forward(self, inputs: dict[str, NDArray[np.int64]], *, alone: bool = True) -> Vectors:
        try:
            request = self._idle[alone].pop()
        except IndexError:
            request = self._forms[alone].create_infer_request()
        request.infer(inputs)
        vectors = np.array(request.get_output_tensor(0).data, np.float32)
        self._idle[alone].append(request)
        return vectors


class SentenceTransformers(TextPeer):
    """sentence-transformers' encode, with a thread a core.

    Its OpenVINO backend computes in what OpenVINO takes by default, bfloat16 where a processor has it.
    Its ONNX backend has its own way to int8, dynamic and without calibration.
    """

    def __init__(self, options: PeerOptions) -> None:
        device = options.torch_device
        if options.backend == "torch":
            import torch

            torch.set_num_threads(usable_cores())
            self._model = _load(options, {"dtype": getattr(torch, _served_dtype(options))})
        elif options.backend == "openvino":
            from server.inference import openvino_library  # noqa: F401  imported first, it tells nobody

            self._model = _load(options, {})
        else:
            self._model = _in_int8(options)
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


def _served_dtype(options: PeerOptions) -> str:
    if options.device == "cpu":
        return options.dtype
    from scripts.benchmark.peer_torch import served_card

    return served_card(options.torch_device).dtype


def _load(options: PeerOptions, model_kwargs: dict[str, Any], folder: str = "") -> Any:
    from sentence_transformers import SentenceTransformer

    given = {"device": options.torch_device, "backend": options.backend}
    return SentenceTransformer(
        folder or str(options.model_folder), **given, model_kwargs=model_kwargs
    )


def _in_int8(options: PeerOptions) -> Any:
    from sentence_transformers import export_dynamic_quantized_onnx_model

    with tempfile.TemporaryDirectory() as folder:
        exported = _load(options, {})
        exported.save_pretrained(folder)
        export_dynamic_quantized_onnx_model(exported, "avx512_vnni", folder)
        return _load(options, {"file_name": "model_qint8_avx512_vnni.onnx"}, folder)


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
