"""Passes of the usual shapes as CUDA graphs, each tried with a random packing before it is used.

A graph that differs from the pass that it was recorded from is told and not used. Made by one
thread, before others ask for shapes.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from server.errors import first_line
from server.inference import least_cosines
from server.inference.backend import TokenIds
from server.inference.pooling import cosines
from server.inference.recorded_shapes import RecordedShapes, Shape, random_lengths
from server.inference.torch_modules import PackedModule

log = logging.getLogger(__name__)

_MOST_TOLD = 5  # shapes in one log line


@dataclass(frozen=True, slots=True)
class Recording:
    """A pass of one shape."""

    graph: torch.cuda.CUDAGraph
    shape: Shape
    input: torch.Tensor  # common to all: slots + 1 bounds of this shape, then its ids
    embeddings: torch.Tensor  # (slots, embedding_dim), overwritten by the next replay of any


@dataclass(frozen=True, slots=True)
class _Differing:
    shape: Shape
    cosine: float  # NaN: it could not be compared
    how: str

    def __str__(self) -> str:
        tokens, slots, longest = self.shape
        return f"{tokens} tokens of {slots} texts of at most {longest} ({self.how})"


class Recordings:
    """The recorded passes of one encoder.

    Args:
        stream: on which they are recorded and replayed.
        max_tokens: of the largest shape.
        max_input_tokens: no sequence has more.
    """

    def __init__(
        self,
        encoder: PackedModule,
        device: torch.device,
        stream: torch.cuda.Stream,
        *,
        max_tokens: int,
        max_input_tokens: int,
    ) -> None:
        self._encoder = encoder
        self._stream = stream
        self._max_input_tokens = max_input_tokens
        self._shapes = RecordedShapes(max_tokens, max_input_tokens)
        self._pool = torch.cuda.graph_pool_handle()
        self._recorded: dict[Shape, Recording] = {}
        most = max(shape.slots + 1 + shape.tokens for shape in self._shapes)
        with torch.cuda.device(device), torch.inference_mode():
            self._input = torch.zeros(most, dtype=torch.int32, device=device)
            for shape in self._shapes:  # the largest first: the others fit into its memory
                self._recorded[shape] = self._record(shape)

    @property
    def num_refused(self) -> int:
        """Shapes that are not used, since they differ."""
        return len(self._shapes.refused)

    @property
    def num_bytes(self) -> int:
        """Memory of the device that all graphs share."""
        segments = torch.cuda.memory_snapshot()
        own = [
            one for one in segments if tuple(one.get("segment_pool_id", ())) == tuple(self._pool)
        ]
        return sum(int(one["total_size"]) for one in own)

    def fitting(self, sequences: int, tokens: int, longest: int) -> Recording | None:
        """What computes such a micro-batch with the least waste; None if nothing does."""
        shape = self._shapes.fitting(sequences, tokens, longest)
        return self._recorded[shape] if shape else None

    def refuse_differing(self, draw: Callable[[Sequence[int]], list[TokenIds]], dtype: str) -> None:
        """Try each shape with a random packing, and use those no more that differ; logs them.

        Args:
            draw: sequences of such lengths.
            dtype: which the encoder computes in.
        """
        chance = random.Random(0)
        least = least_cosines.RECORDED[dtype]
        differing = []
        with torch.inference_mode():
            for shape in list(self._shapes):
                lengths = random_lengths(shape, self._max_input_tokens, chance)
                found = self._compare(self._recorded[shape], lengths, draw(lengths))
                if not found.cosine >= least:
                    differing.append(found)
                    del self._recorded[shape]
        self._shapes.refused = frozenset(one.shape for one in differing)
        if differing:
            told = "; ".join(map(str, differing[:_MOST_TOLD]))
            log.warning(
                "%d of %d recorded shapes are not used, since a replay differs from the pass: %s%s",
                len(differing),
                len(differing) + len(self._recorded),
                told,
                "; …" if len(differing) > _MOST_TOLD else "",
            )

    def _compare(
        self, recording: Recording, lengths: Sequence[int], sequences: Sequence[TokenIds]
    ) -> _Differing:
        shape, count = recording.shape, len(lengths)
        written = np.empty(shape.slots + 1 + shape.tokens, np.int32)
        write_input(written, sequences, np.array(lengths, np.int32), shape.slots)
        try:
            with torch.cuda.stream(self._stream):
                self._input[: len(written)].copy_(torch.from_numpy(written))
                recording.graph.replay()
                replayed = recording.embeddings[:count].cpu().numpy()
                computed = self._pass(shape)[:count].cpu().numpy()
        except torch.OutOfMemoryError as error:
            return _Differing(shape, np.nan, first_line(error))
        with np.errstate(invalid="ignore"):  # a replay may give zeros
            lowest = float(cosines(replayed, computed).min())
        return _Differing(shape, lowest, f"cosine {lowest:.5f}")

    def _record(self, shape: Shape) -> Recording:
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._pass(shape)  # what is made at first use is not recorded
        self._stream.synchronize()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            embeddings = self._pass(shape)
        return Recording(graph, shape, self._input, embeddings)

    def _pass(self, shape: Shape) -> torch.Tensor:
        """The pass itself, over the common input."""
        tokens, slots, longest = shape
        ids = self._input[slots + 1 : slots + 1 + tokens]
        embeddings: torch.Tensor = self._encoder(ids, self._input[: slots + 1], longest)
        return embeddings


def write_input(
    written: NDArray[np.int32],
    sequences: Sequence[TokenIds],
    lengths: NDArray[np.int32],
    slots: int,
) -> None:
    """Lay sequences of these lengths out as a packed pass takes them: slots + 1 bounds, then ids.

    Args:
        written: (slots + 1 + room for ids,), all of which is overwritten.
    """
    count = len(lengths)
    written[0] = 0
    np.cumsum(lengths, out=written[1 : count + 1])
    total = written[count]
    written[count + 1 : slots + 1] = total
    np.concatenate(sequences, out=written[slots + 1 : slots + 1 + total])
    written[slots + 1 + total :] = 0  # what an earlier batch left may be no id
