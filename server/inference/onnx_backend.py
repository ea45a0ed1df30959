"""The forward pass by ONNX Runtime on CPU; needs no torch.

One session with one thread of its own is shared by all worker threads: on small matrices, two
micro-batches side by side beat one micro-batch spread over two cores.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

# Since 1.29 the official Linux builds report to Microsoft what they compute, unless this is set
# before the library is loaded; it also keeps a device id in the home folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort
from numpy.typing import NDArray

from server.errors import ModelLoadError
from server.inference.backend import OutOfMemory

_ERROR_SEVERITY = 3


class OnnxBackend:
    """A graph with pooling inside, whose weights lie in the safetensors file beside it.

    Raises:
        ModelLoadError: ONNX Runtime refuses the graph.
    """

    def __init__(self, graph: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERROR_SEVERITY
        try:
            self._session = ort.InferenceSession(
                graph, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's classes share no base but Exception
            raise ModelLoadError(f"graph {graph}: {str(error).splitlines()[0]}") from error

    def forward(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """See `Backend.forward`."""
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        try:
            (embeddings,) = self._session.run(["embeddings"], feeds)
        except Exception as error:
            if isinstance(error, MemoryError) or "allocate memory" in str(error).lower():
                raise OutOfMemory(str(error)) from error
            raise
        return np.asarray(embeddings, dtype=np.float32)
