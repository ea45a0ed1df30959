"""How large a model's weights are in memory, from the file to the products.

A weight that is stored in 16 bits would be widened to float32 before anything else is done with it.

At the first pass OpenVINO copies each matrix into the order in which it multiplies, and holds on to
the matrix that it was given. What lies in a file need not stay in memory for that: it is read again
if it is ever asked for. Any thread may call; one Scratch belongs to one model.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from server.inference.openvino_library import ops, ov

_HALF = {ov.Type.bf16, ov.Type.f16}

log = logging.getLogger(__name__)

# From madvise(2), Linux 5.4 and later. Unlike MADV_DONTNEED it changes no content, whatever the
# memory is: a file's pages are dropped, and written first if need be; others stay or are swapped.
_MADV_PAGEOUT = 21
_LEAST_BYTES = 1 << 16  # of weights that are worth it
# What OpenVINO's own readers put on the Convert behind weights that are stored in 16 bits:
# `ov::Decompression`, openvino/core/rt_info; it keeps constant folding from doing it at once.
_DECOMPRESSION = "decompression_0"


def keep_as_stored(model: ov.Model) -> None:
    """Have stored weights of 16 bits widened where they are multiplied, not all of them at load."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convert":
            source = node.input_value(0).get_node()
            if source.get_type_name() == "Constant" and source.get_element_type() in _HALF:
                node.get_rt_info()[_DECOMPRESSION] = ""


def page_out(model: ov.Model) -> None:
    """Give back the memory of a model's stored weights, as far as they lie in files."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            page_out_constant(node)


def page_out_constant(node: ov.Node) -> None:
    """Advice only: where the system knows no such thing, or refuses, all stays as it is."""
    weights: NDArray[Any] = node.data
    if weights.nbytes < _LEAST_BYTES or sys.platform != "linux":
        return
    start = -(-weights.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (weights.ctypes.data + weights.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    _madvise()(start, length, _MADV_PAGEOUT)


class Scratch:
    """Weights made at load, in a file without a name that goes with the last of them.

    It lies where the system wants temporary files (`TMPDIR`) and takes as much room as the weights.
    All of it is mapped once, since each mapping keeps a file descriptor.

    Args:
        most_bytes: that the weights may come to; what is not written takes no room.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._file: IO[bytes] | None = None
        self._mapping: mmap.mmap | None = None
        self._end = 0
        self._failed = False

    def close(self) -> None:
        """No more weights come; those that did stay."""
        self._mapping = None  # the weights in it hold it
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a write that failed, and was told
                self._file.close()

    def move(self, made: ov.Output) -> None:
        """Put the stored weights behind an output into the file.

        A file that cannot be written leaves these and all further ones in memory, and a warning.
        """
        node = made.get_node()
        if node.get_type_name() != "Constant":
            for source in node.input_values():
                self.move(source)
        elif node.data.nbytes >= _LEAST_BYTES and not self._failed:
            try:
                moved = self._write(node.data)
            except OSError as error:
                self._failed = True
                log.warning("weights stay in memory, since a temporary file failed: %s", error)
                return
            fresh = ops.constant(moved, shared_memory=True)
            for target in made.get_target_inputs():
                target.replace_source_output(fresh.output(0))

    def _write(self, weights: NDArray[Any]) -> NDArray[Any]:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        if self._mapping is None:
            self._file.truncate(self._most_bytes)
            self._mapping = mmap.mmap(self._file.fileno(), self._most_bytes)
        start = -(-self._end // mmap.PAGESIZE) * mmap.PAGESIZE
        if start + weights.nbytes > self._most_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # Not through the mapping: where no room is left, that would end the process.
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(weights).data)
        self._file.flush()
        self._end = start + weights.nbytes
        moved = np.frombuffer(self._mapping, weights.dtype, weights.size, start)
        return moved.reshape(weights.shape)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    found = ctypes.CDLL(None).madvise
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found.restype = ctypes.c_int
    return found
