"""The forward pass by OpenVINO on CPU, in bfloat16 or int8; needs no torch.

As in `onnx_backend`, each worker thread computes its micro-batch on one core, and a second form of
the model spreads over the cores what is alone on the machine, unless it was seen at load to give other
bits. A heavy model has one form, which computes one pass at a time over all cores. A text has the same
bits in any company: what it is padded to depends on its own length alone, and no sum runs over more
than one text.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import GRAPH_FILE, Card, PoolingMode
from server.catalog.int8_recipe import Int8Recipe
from server.errors import ModelLoadError
from server.inference.backend import (
    Layout,
    LoadOptions,
    OutOfMemory,
    TokenIds,
    forward_by_length,
)
from server.inference.cpu_instructions import quick_dtypes
from server.inference.graph_interface import (
    INPUT_IDS,
    OWN_OUTPUT,
    choose_output,
    feeds_of,
)
from server.inference.openvino_int8 import count_weights, quantize
from server.inference.openvino_library import CORE, last_line, ov
from server.inference.openvino_pages import Scratch, keep_as_stored, page_out, page_out_constant
from server.inference.pooling import normalize, pool

# Prepared operations that OpenVINO keeps, an operation and shape each; its default is 5,000. After
# 10,000 micro-batches of random shapes all-MiniLM-L6-v2 in int8 has 251 MB resident. With finer steps
# of lengths it had 356 MB after 1,200, and 373 MB by default; 200 were 1 % slower.
_KEPT_OPERATIONS: Final = 200
# From so many weights on they are not laid out twice, for one core and for all; and in int8 what they
# are laid out from lies in a temporary file. One form took half the memory (28 layers of 1,024).
_HEAVY_WEIGHTS: Final = 150_000_000
# Tokens of the texts whose bits are compared at load: 8 ms more than one pass (all-MiniLM-L6-v2).
_COMPARED_TOKENS: Final = (1, 24)
# As OpenVINO 2026.4 says that memory is short; "allocate" alone stands in much else that it says.
_NO_MEMORY: Final = re.compile(
    r"bad_alloc|out of memory|exceeds PTRDIFF_MAX"
    r"|(failed to|could not|can ?not|can't) allocate (\d|memory(?! for))",
    re.IGNORECASE,
)
_LOOKED_THROUGH = {"Convert", "Reshape", "Squeeze", "Unsqueeze"}  # between ids and their table

log = logging.getLogger(__name__)


def load_backends(
    card: Card, devices: Sequence[str], options: LoadOptions
) -> tuple[tuple[OpenvinoBackend, ...], None]:
    """See `BackendModule.load_backends`."""
    backend = OpenvinoBackend(
        card.path(GRAPH_FILE),
        max_input_tokens=card.max_input_tokens,
        recipe=card.int8_recipe if card.dtype == "int8" else None,
        pooling=card.pooling,
        normalized=card.normalize,
        worker_threads=options.worker_threads,
        wide_threads=options.wide_threads,
    )
    return (backend,), None


class OpenvinoBackend:
    """A graph made here, with its weights in safetensors files beside it, or a publisher's own.

    Args:
        max_input_tokens: the longest text; a longer one is not computed.
        recipe: computed in int8 as it says; None: in bfloat16.
        pooling, normalized: what a publisher's graph that gives token vectors leaves to do.
        worker_threads: how many threads compute at once, each on one core.
        wide_threads: cores that a pass alone on the machine is spread over.

    Raises:
        ModelLoadError: OpenVINO refuses the graph, it wants or gives something else, or this machine
            does not compute in these numbers.
    """

    layout = Layout.BY_COARSE_LENGTH

    def __init__(
        self,
        graph: Path,
        *,
        max_input_tokens: int,
        recipe: Int8Recipe | None = None,
        pooling: PoolingMode = "mean",
        normalized: bool = False,
        worker_threads: int = 1,
        wide_threads: int = 1,
    ) -> None:
        self._graph = graph
        self._max_input_tokens = max_input_tokens
        self._pooling: PoolingMode = pooling
        with _naming(graph):
            model = CORE.read_model(graph)
            inputs = {port.any_name: port for port in model.inputs}
            outputs = {name: port for port in model.outputs for name in port.names}
            output = choose_output(graph, inputs, outputs)
            self._normalize = normalized and output != OWN_OUTPUT
            self._inputs = tuple(inputs)
            self._num_embeddings = _count_rows(model)
            model = ov.Model([outputs[output].node], model.get_parameters(), "encoder")
            keep_as_stored(model)
            weights = count_weights(model)
            heavy = weights >= _HEAVY_WEIGHTS
            if recipe is not None:
                _quantize(model, recipe, weights if heavy else None)
            form = functools.partial(_Form, model, recipe)
            if heavy:
                cores = max(worker_threads, wide_threads)
                self._narrow = self._wide = form(streams=1, threads=cores)
            else:
                self._narrow = self._wide = form(streams=worker_threads, threads=worker_threads)
                if wide_threads > 1:
                    self._wide = form(streams=1, threads=wide_threads)
        self.concurrent_passes = 1 if heavy else None
        self._lay_out(model)

    def forward(self, sequences: Sequence[TokenIds], *, alone: bool = False) -> NDArray[np.float32]:
        """See `Backend.forward`; texts of one padded length are computed together.

        Raises:
            ValueError: a text is too long, or an id is none of the model's; neither is computed,
                since OpenVINO does not look whether a table has the row that it reads.
        """
        self._check(sequences)
        compute = functools.partial(self._pass, alone=alone)
        return forward_by_length(compute, sequences, self.layout, self._max_input_tokens)

    def _lay_out(self, model: ov.Model) -> None:
        """Have the weights in the order in which they are multiplied, and not twice in memory.

        That takes a pass of each form; where their bits differ, the wide one is not used.
        """
        tried = [
            np.arange(min(tokens, self._max_input_tokens), dtype=np.int32) % self._num_embeddings
            for tokens in _COMPARED_TOKENS
        ]
        with contextlib.suppress(Exception):  # whoever asks for the first vector is told
            narrow = self.forward(tried)
            if self._wide is not self._narrow:
                wide = self.forward(tried, alone=True)
                if wide.tobytes() != narrow.tobytes():
                    self._wide = self._narrow
                    log.warning(
                        "graph %s: texts are computed on one core each, since over several cores "
                        "this processor gives other bits",
                        self._graph,
                    )
        page_out(model)

    def count_embeddings(self, vocabulary_size: int) -> int:
        """See `Backend.count_embeddings`; read from the graph."""
        return min(vocabulary_size, self._num_embeddings)

    def _pass(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], *, alone: bool
    ) -> NDArray[np.float32]:
        feeds = feeds_of(self._inputs, input_ids, attention_mask)
        # However short: over two cores 8 tokens took 0.85 of the time that they take on one, 256
        # tokens 0.5 to 0.9; where the other core had slept for 10 ms, no less and no more.
        form = self._wide if alone else self._narrow
        try:
            embeddings = form.run([feeds[name] for name in self._inputs])
        except Exception as error:
            reason = last_line(error)
            if isinstance(error, MemoryError) or _NO_MEMORY.search(reason):
                raise OutOfMemory(reason) from error
            raise RuntimeError(reason) from error
        if embeddings.ndim == 3:
            embeddings = pool(embeddings, attention_mask, self._pooling)
        return normalize(embeddings) if self._normalize else embeddings

    def _check(self, sequences: Sequence[TokenIds]) -> None:
        if max(map(len, sequences)) > self._max_input_tokens:
            raise ValueError(f"a text is longer than {self._max_input_tokens} tokens")
        if any(one.min() < 0 or one.max() >= self._num_embeddings for one in sequences):
            raise ValueError(f"a token id is none of 0 to {self._num_embeddings - 1}")


class _Form:
    """A compiled model and the requests that run it, one for each thread that computes at once."""

    def __init__(
        self, model: ov.Model, recipe: Int8Recipe | None, *, streams: int, threads: int
    ) -> None:
        # Beside int8, a processor without bfloat16 computes in float32.
        bfloat16 = recipe is None or "bfloat16" in quick_dtypes()
        precision = ov.Type.bf16 if bfloat16 else ov.Type.f32
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": recipe.group_size if recipe else 0,
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
            # A container's cores are not its own, and other threads compute beside these.
            "ENABLE_CPU_PINNING": False,
            "ENABLE_CPU_RESERVATION": False,
            "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_OPERATIONS,
        }
        self._compiled = CORE.compile_model(model, "CPU", options)
        if self._compiled.get_property("INFERENCE_PRECISION_HINT") != precision:
            raise ValueError("this processor does not compute in bfloat16")
        self._idle: list[ov.InferRequest] = []

    def run(self, feeds: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """What the model gives, float32; feeds are in the order of its inputs."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.infer(dict(enumerate(feeds)), share_inputs=True)
        found = np.array(request.get_output_tensor(0).data, np.float32)
        self._idle.append(request)  # one that failed is not used again
        return found


@contextlib.contextmanager
def _naming(graph: Path) -> Iterator[None]:
    """Whatever fails is said of the graph; OpenVINO raises RuntimeError and others of its own."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(f"graph {graph}: {last_line(error)}") from error


def _quantize(model: ov.Model, recipe: Int8Recipe, heavy_weights: int | None) -> None:
    # A file of as many bytes as the weights would take in float32 has room for any recipe.
    scratch = None if heavy_weights is None else Scratch(4 * heavy_weights)
    with contextlib.closing(scratch) if scratch else contextlib.nullcontext():
        if not quantize(model, recipe, functools.partial(_give_back, scratch)):
            raise ValueError("it has no matrix that can be int8")


def _give_back(scratch: Scratch | None, stored: ov.Node, made: ov.Output) -> None:
    """The memory of a matrix that was made int8, and what it became goes into a file."""
    if scratch is not None:
        scratch.move(made)
    page_out_constant(stored)


def _count_rows(model: ov.Model) -> int:
    """Rows of the table that token ids are looked up in; of several, the least."""
    rows = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        source = node.input_value(1).get_node()
        while source.get_type_name() in _LOOKED_THROUGH:
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Parameter" and INPUT_IDS in source.output(0).names:
            table, axis = node.input_value(0).get_partial_shape(), node.input_value(2).get_node()
            if table.rank.is_static and axis.get_type_name() == "Constant":
                length = table[int(axis.get_data().item())]
                if length.is_static:
                    rows.append(int(length.get_length()))
    if not rows:
        raise ValueError(f"has no table that {INPUT_IDS} are looked up in")
    return min(rows)
