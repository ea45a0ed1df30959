"""Packed forward passes on one CUDA device, fed so that it need not wait.

Each worker thread has a lane: pinned host memory, and a stream for its copies. Passes of all lanes
follow each other on one stream, so that one lane's copies and Python run beside another's pass.
Shapes up to the usual micro-batch are recorded as CUDA graphs: launching a small encoder's kernels
one by one costs more than computing them.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from server.errors import first_line
from server.inference.backend import TokenIds
from server.inference.torch_modules import PackedModule
from server.inference.torch_recording import Recording, Recordings, write_input

log = logging.getLogger(__name__)

# So long passes that find no memory wait for one load, which takes more while it measures than it
# keeps. Shorter than `Patience.stuck_after_s`, for all parts of a micro-batch together.
LOADING_PATIENCE_S = 30.0
LANES = 2  # one prepares or fetches while the other's pass runs
# Up to so many tokens copying beside another pass gains less than it costs in Python.
DIRECT_TOKENS = 4096


class Loading:
    """One load at a time, and passes that wait for its end; any thread may call.

    Held while a model is loaded: memory is measured, and while a graph is recorded nothing may wait
    for the device or give its memory back.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waited_since_s: float | None = None  # for the load under way; time.monotonic()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._waited_since_s = None

    def __exit__(self, *_: object) -> None:
        self.leave()

    def try_to_enter(self, patience_s: float) -> bool:
        """Enter as soon as no other thread loads.

        Args:
            patience_s: counted from the first try during this load; False if that is too short.
        """
        if self._lock.acquire(blocking=False):
            return True
        now_s = time.monotonic()
        since_s = self._waited_since_s = self._waited_since_s or now_s
        left_s = since_s + patience_s - now_s
        return left_s > 0 and self._lock.acquire(timeout=left_s)

    def leave(self) -> None:
        """After entering."""
        self._lock.release()


LOADING = Loading()


def give_back_memory() -> None:
    """Let other programs have what models took that are not needed any more."""
    gc.collect()  # modules point at each other
    with LOADING:
        torch.cuda.empty_cache()


def empty_cache() -> bool:
    """Give back what the allocator keeps, once no other thread loads a model.

    A load records graphs, and torch forbids it meanwhile. Where the load outlasts
    LOADING_PATIENCE_S nothing is given back.

    Returns:
        Whether a load was waited for and has ended: there may be more memory now.
    """
    waits = not LOADING.try_to_enter(patience_s=0)
    if waits and not LOADING.try_to_enter(LOADING_PATIENCE_S):
        return False
    try:
        torch.cuda.empty_cache()
    finally:
        LOADING.leave()
    return waits


class _Lane:
    """What one worker thread needs for itself; grows with its largest micro-batch."""

    def __init__(self, device: torch.device, embedding_dim: int) -> None:
        self.stream = torch.cuda.Stream(device)
        self.uploaded = torch.cuda.Event()
        self.computed = torch.cuda.Event()
        # Waiting for the first spins, which is soonest done; for the second it sleeps, so that the
        # core is free for HTTP while a large pass is computed.
        self.downloaded_soon = torch.cuda.Event()
        self.downloaded = torch.cuda.Event(blocking=True)
        self._device = device
        self._embedding_dim = embedding_dim
        self._numbers = self._rows = 0

    def make_room(self, numbers: int, rows: int) -> None:
        """Have room for so many int32 of input and so many embeddings.

        The device's memory is not filled: that would be done on a stream that nothing waits for.
        """
        if numbers > self._numbers:
            host = torch.zeros(2 * numbers, dtype=torch.int32, pin_memory=True)
            self.device_input = torch.empty(2 * numbers, dtype=torch.int32, device=self._device)
            self.host_input, self.written = host, host.numpy()
            self._numbers = 2 * numbers
        if rows > self._rows:
            shape = (2 * rows, self._embedding_dim)
            host = torch.zeros(shape, dtype=torch.float32, pin_memory=True)
            self.device_output = torch.empty(shape, dtype=torch.float32, device=self._device)
            self.host_output = host
            self._rows = 2 * rows


class CudaPipeline:
    """Runs a packed encoder for several threads at once."""

    def __init__(self, encoder: PackedModule, device: torch.device, embedding_dim: int) -> None:
        self._encoder = encoder
        self._device = device
        self._embedding_dim = embedding_dim
        self._compute = torch.cuda.Stream(device)
        self._turn = threading.Lock()  # whose pass is put on the stream
        self._lanes = threading.local()
        self.recordings: Recordings | None = None  # None: nothing is recorded

    def run(self, sequences: Sequence[TokenIds]) -> NDArray[np.float32]:
        """Embeddings (sequences, embedding_dim), float32; any thread may call."""
        count = len(sequences)
        lengths = np.fromiter(map(len, sequences), np.int32, count)
        total, longest = int(lengths.sum()), max(2, int(lengths.max()))
        recordings = self.recordings
        recording = recordings.fitting(count, total, longest) if recordings else None
        slots = recording.shape.slots if recording else count
        numbers = slots + 1 + (recording.shape.tokens if recording else total)
        with torch.cuda.device(self._device), torch.inference_mode():
            lane = self._lane()
            lane.make_room(numbers, count)
            write_input(lane.written[:numbers], sequences, lengths, slots)
            try:
                if recording is not None and total <= DIRECT_TOKENS:
                    self._replay_directly(lane, recording, numbers, count)
                    downloaded = lane.downloaded_soon
                else:
                    self._run_beside_copies(lane, recording, slots, numbers, count, longest)
                    downloaded = lane.downloaded
                downloaded.synchronize()  # others may use the interpreter meanwhile
            except BaseException:  # the next pass must not write what this one still reads
                self._compute.synchronize()
                lane.stream.synchronize()
                raise
            vectors: NDArray[np.float32] = lane.host_output[:count].numpy().copy()
            return vectors

    def _replay_directly(self, lane: _Lane, recording: Recording, numbers: int, count: int) -> None:
        """Copies and pass one after the other, in as few calls as can be.

        Each call of torch gives the interpreter away and has to wait until it comes back, and the
        event loop's thread wants it for HTTP.
        """
        with self._turn, torch.cuda.stream(self._compute):
            recording.input[:numbers].copy_(lane.host_input[:numbers], non_blocking=True)
            recording.graph.replay()
            lane.host_output[:count].copy_(recording.embeddings[:count], non_blocking=True)
            lane.downloaded_soon.record()

    def _run_beside_copies(
        self,
        lane: _Lane,
        recording: Recording | None,
        slots: int,
        numbers: int,
        count: int,
        longest: int,
    ) -> None:
        """Copies on the lane's own stream, so that they run beside another lane's pass."""
        with torch.cuda.stream(lane.stream):
            lane.device_input[:numbers].copy_(lane.host_input[:numbers], non_blocking=True)
            lane.uploaded.record()
        with self._turn, torch.cuda.stream(self._compute):
            lane.uploaded.wait()
            if recording is None:
                entered = lane.device_input[:numbers]
                embeddings = self._encoder(entered[slots + 1 :], entered[: slots + 1], longest)
            else:
                recording.input[:numbers].copy_(lane.device_input[:numbers])
                recording.graph.replay()
                embeddings = recording.embeddings
            lane.device_output[:count].copy_(embeddings[:count])
            lane.computed.record()
        with torch.cuda.stream(lane.stream):
            lane.computed.wait()
            fetched = lane.host_output[:count]
            fetched.copy_(lane.device_output[:count], non_blocking=True)
            lane.downloaded.record()

    def record(
        self,
        draw: Callable[[Sequence[int]], list[TokenIds]],
        dtype: str,
        *,
        max_tokens: int,
        max_input_tokens: int,
    ) -> None:
        """Record passes of up to so many tokens; before any thread calls `run`.

        Where that fails the kernels are launched one by one, as for all that is not recorded.

        Args:
            draw, dtype: see `Recordings.refuse_differing`.

        Raises:
            RuntimeError: the device does not recover from the failure.
        """
        try:
            with torch.cuda.stream(torch.cuda.current_stream(self._device)):
                self.recordings = Recordings(
                    self._encoder,
                    self._device,
                    self._compute,
                    max_tokens=max_tokens,
                    max_input_tokens=max_input_tokens,
                )
                self.recordings.refuse_differing(draw, dtype)
        except Exception as error:  # a model may do what a graph cannot hold
            self.recordings = None
            reason = first_line(error)
            log.warning("passes cannot be recorded as CUDA graphs: %s", reason)
            torch.cuda.empty_cache()  # fails if the recording was not ended

    def _lane(self) -> _Lane:
        lane: _Lane | None = getattr(self._lanes, "lane", None)
        if lane is None:
            lane = self._lanes.lane = _Lane(self._device, self._embedding_dim)
        return lane
