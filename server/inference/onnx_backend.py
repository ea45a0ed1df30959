"""The forward pass by ONNX Runtime on CPU; needs no torch.

One session without threads of its own is shared by all worker threads: on small matrices, two
micro-batches side by side beat one micro-batch spread over two cores. A second session spreads a
micro-batch over the cores when it is the only one there is.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

# Since 1.29 the official Linux builds report to Microsoft what they compute, unless this is set
# before the library is loaded; it also keeps a device id in the home folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort
from numpy.typing import NDArray

from server.catalog.card import GRAPH_FILE, Card, PoolingMode
from server.errors import ModelLoadError, first_line
from server.inference.backend import (
    Layout,
    LoadOptions,
    OutOfMemory,
    TokenIds,
    forward_by_length,
    pad,
)
from server.inference.graph_interface import (
    ATTENTION_MASK,
    OWN_OUTPUT,
    TOKEN_OUTPUTS,
    choose_output,
    feeds_of,
)
from server.inference.pooling import normalize, pool

_ERROR_SEVERITY = 3
_FATAL_SEVERITY = 4
# From so many tokens on a pass alone on the machine is spread over its cores. On 2 cores of an AMD
# EPYC, one thread against two, in ms: 128 tokens 34 and 20, 256 tokens 70 and 37; below 64 tokens
# waking a core that sleeps costs more than it brings (12 tokens: 5.4 and 7.5 after 20 ms of rest).
WIDE_FROM_TOKENS = 64
# A thread that waits for its next part of a pass spins so long, then sleeps. ONNX Runtime's own
# default burns 20 ms of a core after each pass.
_SPIN_US = 200


def load_backends(
    card: Card, devices: Sequence[str], options: LoadOptions
) -> tuple[tuple[OnnxBackend, ...], None]:
    """See `BackendModule.load_backends`."""
    if GRAPH_FILE not in card.files:  # one may lie there, but nothing vouches for it
        raise ModelLoadError(
            f"model {card.name}: its card names no {GRAPH_FILE}, from which a CPU computes"
        )
    backend = OnnxBackend(
        card.path(GRAPH_FILE),
        pooling=card.pooling,
        normalized=card.normalize,
        max_input_tokens=card.max_input_tokens,
        wide_threads=options.wide_threads,
    )
    return (backend,), None


class OnnxBackend:
    """A graph made here, with its weights in safetensors files beside it, or a publisher's own.

    Args:
        pooling, normalized: what a publisher's graph that gives token vectors leaves to do.
        max_input_tokens: the most that the model reads; padding goes no further.
        layout: how sequences of unlike length are computed; PADDED shows whether padding matters.
        wide_threads: cores that a pass alone on the machine is spread over.

    Raises:
        ModelLoadError: ONNX Runtime refuses the graph, or it wants or gives something else.
    """

    concurrent_passes = None

    def __init__(
        self,
        graph: Path,
        *,
        pooling: PoolingMode = "mean",
        normalized: bool = False,
        max_input_tokens: int = sys.maxsize,
        layout: Layout = Layout.BY_LENGTH,
        wide_threads: int = 1,
    ) -> None:
        self.layout = layout
        self._max_input_tokens = max_input_tokens
        self._session = _open(graph, threads=1)
        self._wide = _open(graph, threads=wide_threads) if wide_threads > 1 else self._session
        inputs = {node.name for node in self._session.get_inputs()}
        outputs = [node.name for node in self._session.get_outputs()]
        self._output = choose_output(graph, inputs, outputs)
        self._inputs = inputs
        self._pooling: PoolingMode = pooling
        self._normalized = normalized
        self._normalize = normalized and self._output != OWN_OUTPUT

    def forward(self, sequences: Sequence[TokenIds], *, alone: bool = False) -> NDArray[np.float32]:
        """See `Backend.forward`."""
        compute = partial(self._compute, alone=alone)
        if self.layout.is_by_length:
            return forward_by_length(compute, sequences, self.layout, self._max_input_tokens)
        return compute(*pad(sequences))

    def _compute(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], *, alone: bool
    ) -> NDArray[np.float32]:
        feeds = feeds_of(self._inputs, input_ids, attention_mask)
        wide = alone and input_ids.size >= WIDE_FROM_TOKENS
        try:
            (found,) = (self._wide if wide else self._session).run([self._output], feeds)
        except Exception as error:
            if isinstance(error, MemoryError) or "allocate memory" in str(error).lower():
                raise OutOfMemory(str(error)) from error
            raise
        embeddings = np.asarray(found, dtype=np.float32)
        if embeddings.ndim == 3:
            embeddings = pool(embeddings, attention_mask, self._pooling)
        return normalize(embeddings) if self._normalize else embeddings

    def pool_tokens(self, sequence: TokenIds) -> NDArray[np.float32] | None:
        """The vector of a text, (1, hidden_dim), by pooling the graph's token vectors here.

        None if the graph gives no token vectors, or `forward` does the same anyway.
        """
        outputs = [node.name for node in self._session.get_outputs()]
        tokens = [name for name in TOKEN_OUTPUTS if name in outputs]
        if not tokens or self._output in TOKEN_OUTPUTS:
            return None
        feeds = feeds_of(self._inputs, *pad([sequence]))
        (hidden,) = self._session.run(tokens[:1], feeds)
        pooled = pool(np.asarray(hidden, np.float32), feeds[ATTENTION_MASK], self._pooling)
        return normalize(pooled) if self._normalized else pooled

    def count_embeddings(self, vocabulary_size: int) -> int:
        """See `Backend.count_embeddings`.

        Found by trying: publishers give the table any name, and a session shows no weights. One
        pass of one token if there are enough, else about twenty.
        """
        if self._looks_up(vocabulary_size - 1):
            return vocabulary_size
        return bisect_left(range(vocabulary_size), True, key=lambda n: not self._looks_up(n))

    def _looks_up(self, token_id: int) -> bool:
        quiet = ort.RunOptions()
        quiet.log_severity_level = _FATAL_SEVERITY
        try:
            feeds = feeds_of(self._inputs, *pad([np.array([token_id], np.int32)]))
            self._session.run([self._output], feeds, quiet)
        except Exception:  # ONNX Runtime's classes share no base but Exception
            return False
        return True


def _open(graph: Path, *, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR_SEVERITY
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    try:
        return ort.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's classes share no base but Exception
        raise ModelLoadError(f"graph {graph}: {first_line(error)}") from error
