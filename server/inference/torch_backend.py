"""The forward pass by torch, on a GPU (or, for tests, on the CPU).

Sequences are packed without padding if the model computes the same that way, which is tried when
it is loaded; else they are padded. Several threads may call `forward`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from server.catalog.card import Card
from server.errors import ModelLoadError, first_line
from server.inference import least_cosines
from server.inference.backend import (
    Backend,
    Capacity,
    Layout,
    LoadOptions,
    OutOfMemory,
    TokenIds,
    pad,
)
from server.inference.compilations import COMPILATIONS
from server.inference.pooling import cosines
from server.inference.recorded_shapes import packings_to_warm
from server.inference.torch_attention import takes_attention_functions
from server.inference.torch_compile import (
    are_compiled,
    compile_layers,
    release_layers,
    warm_up,
    worth_compiling,
)
from server.inference.torch_cuda import LANES, LOADING, CudaPipeline, empty_cache
from server.inference.torch_modules import (
    PackedModule,
    PaddedModule,
    lay_out,
    load_dense_layers,
    load_transformer,
)
from server.inference.torch_recording import Recordings

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PROBE_LENGTHS = (1, 2, 5, 17, 40, 100, 600)  # the last is beyond the usual sliding windows
# Tokens of a micro-batch on a GPU, unless a setting or the memory says otherwise.
GPU_BATCH_TOKENS = 16_384
_TIMED_PASSES = 3


def load_backends(
    card: Card, devices: Sequence[str], options: LoadOptions
) -> tuple[tuple[TorchBackend, ...], Capacity]:
    """One backend a device, ready to compute, and what was measured of them.

    Raises:
        ModelLoadError: as TorchBackend and `TorchBackend.prepare`.
    """
    with LOADING, COMPILATIONS.expected():
        backends = tuple(TorchBackend(card, device) for device in devices)
        prepared = [backend.prepare(options.max_batch_tokens) for backend in backends]
    recordings = [backend.recordings for backend in backends if backend.recordings is not None]
    capacity = Capacity(
        batch_tokens=min(tokens for tokens, _ in prepared),
        tokens_per_second=min(rate for _, rate in prepared),
        concurrent_passes=LANES,
        recorded_bytes=sum(recorded.num_bytes for recorded in recordings),
        refused_shapes=sum(recorded.num_refused for recorded in recordings),
    )
    return backends, capacity


def measure_again(backends: Iterable[Backend], capacity: Capacity) -> Capacity:
    """The capacity that is left beside models that were loaded later.

    Raises:
        ModelLoadError: as `TorchBackend.find_budget`.
    """
    with LOADING, COMPILATIONS.expected():
        found = [
            backend.find_budget(capacity.batch_tokens)
            for backend in backends
            if isinstance(backend, TorchBackend)
        ]
    return replace(
        capacity,
        batch_tokens=min(tokens for tokens, _ in found),
        tokens_per_second=min(rate for _, rate in found),
    )


class TorchBackend:
    """A card's model on one device, as torch names it, in the card's dtype.

    Raises:
        ModelLoadError: the card does not say how, or torch cannot load it.
    """

    concurrent_passes = None

    def __init__(self, card: Card, device: str) -> None:
        self._name = card.name
        self._dtype = card.dtype
        self._device = torch.device(device)
        self._max_input_tokens = card.max_input_tokens
        transformer = load_transformer(card, DTYPES[card.dtype], self._device)
        dense = load_dense_layers(card).to(self._device)
        self._vocabulary_size = int(transformer.get_input_embeddings().weight.shape[0])
        self._padded = PaddedModule(transformer, dense, card.pooling)
        self._packed = PackedModule(transformer, dense, card.pooling)
        self.layout = Layout.PACKED if self._find_packed_form(card) else Layout.PADDED
        if self.layout is Layout.PADDED:
            self._padded.attend()
        self._pipeline: CudaPipeline | None = None
        if self.layout is Layout.PACKED and self._device.type == "cuda":
            self._pipeline = CudaPipeline(self._packed, self._device, card.embedding_dim)

    def forward(self, sequences: Sequence[TokenIds], *, alone: bool = False) -> NDArray[np.float32]:
        """See `Backend.forward`.

        Raises:
            ValueError: an id is outside the vocabulary. The device would not recover from it.
        """
        if int(np.concatenate(sequences).max()) >= self._vocabulary_size:
            raise ValueError(f"a token id is not below {self._vocabulary_size}")
        for last in (False, True):
            try:
                if self._pipeline is not None:
                    return self._pipeline.run(sequences)
                with torch.inference_mode():
                    return self._run(sequences, packed=self.layout is Layout.PACKED)
            except torch.OutOfMemoryError as error:
                reason = first_line(error)
            # Behind the handler: the failed pass's memory is free only once its traceback is gone.
            if not empty_cache() or last:
                break
        raise OutOfMemory(reason)

    def count_embeddings(self, vocabulary_size: int) -> int:
        """See `Backend.count_embeddings`."""
        return min(self._vocabulary_size, vocabulary_size)

    def prepare(self, max_batch_tokens: int | None) -> tuple[int, float]:
        """Find out what fits into memory and record the usual shapes; before `forward`.

        Args:
            max_batch_tokens: token budget that is wished for; None: what suits a GPU.

        Returns:
            The token budget, and tokens a second with it.

        Raises:
            ModelLoadError: not even the longest text fits, or the dtype is too narrow.
        """
        budget, _ = self.find_budget(max_batch_tokens or GPU_BATCH_TOKENS)
        self._compile_for(budget)
        if self._pipeline is not None:
            self._pipeline.record(
                self._random_sequences,
                self._dtype,
                max_tokens=budget,
                max_input_tokens=self._max_input_tokens,
            )
        return self.find_budget(budget)  # beside what the recordings keep

    def find_budget(self, budget: int) -> tuple[int, float]:
        """As much of this token budget as the memory holds now, and tokens a second with it.

        Raises:
            ModelLoadError: not even the longest text fits, or the dtype is too narrow.
        """
        while True:
            try:
                rate = self._time_worst(budget)
                break
            except OutOfMemory:
                if budget <= self._max_input_tokens:
                    raise ModelLoadError(
                        f"model {self._name}: a text of {self._max_input_tokens} tokens does not "
                        f"fit into the memory of {self._device}"
                    ) from None
                budget = max(budget // 2, 1)
                log.warning("model %s: micro-batches of %d tokens at most", self._name, budget)
        torch.cuda.empty_cache()
        return budget, rate

    @property
    def recordings(self) -> Recordings | None:
        """Its recorded passes; None if there are none."""
        return self._pipeline.recordings if self._pipeline is not None else None

    def _compile_for(self, budget: int) -> None:
        """Have compiled now whatever requests could make torch compile later."""
        transformer = self._padded.transformer
        if not are_compiled(transformer):
            return
        packings = packings_to_warm(budget, self._max_input_tokens)
        if not warm_up(lambda lengths: self.forward(self._random_sequences(lengths)), packings):
            log.warning(
                "model %s: not compiled, since each micro-batch is compiled anew", self._name
            )
            release_layers(transformer)

    def _time_worst(self, budget: int) -> float:
        """Tokens a second of the micro-batch that takes the most memory.

        Raises:
            OutOfMemory: it does not fit.
            ModelLoadError: the vectors are not finite.
        """
        count = max(1, budget // self._max_input_tokens)
        sequences = self._random_sequences([self._max_input_tokens] * count)
        for _ in range(_TIMED_PASSES):
            began_s = time.perf_counter()
            vectors = self.forward(sequences)
            seconds = time.perf_counter() - began_s
        if not np.isfinite(vectors).all():
            raise ModelLoadError(
                f"model {self._name}: {self._dtype} is too narrow for it (numbers overflow); "
                "choose another --dtype"
            )
        return count * self._max_input_tokens / seconds

    def _find_packed_form(self, card: Card) -> bool:
        """Have sequences packed, compiled if that pays; False if they must be padded.

        Packed, they must give the vectors that each gives alone under stock attention.
        """
        transformer = self._padded.transformer
        if not takes_attention_functions(transformer):
            log.info("model %s: padded, since its class takes no attention function", card.name)
            return False
        if self._device.type == "cuda" and self._dtype == "float32":
            log.info("model %s: padded, since packed attention is for half precision", card.name)
            return False
        if self._device.type == "cuda" and torch.cuda.get_device_capability(self._device) < (8, 0):
            log.info("model %s: padded, since its GPU is too old for packed attention", card.name)
            return False
        lengths = [min(length, card.max_input_tokens) for length in PROBE_LENGTHS]
        sequences = self._random_sequences(lengths)
        with torch.inference_mode():
            self._padded.attend()
            alone = [self._run([sequence], packed=False)[0] for sequence in sequences]
            narrow = self._packed.narrow() and self._agrees(
                sequences, alone, "with a narrow last layer"
            )
            if not narrow:
                self._packed.widen()
            if self._device.type == "cuda" and worth_compiling(transformer):
                compile_layers(transformer)
                if self._agrees(sequences, alone, "compiled"):
                    return True
                release_layers(transformer)
            return narrow or self._agrees(sequences, alone, "packed")

    def _agrees(
        self, sequences: Sequence[TokenIds], alone: Sequence[NDArray[np.float32]], form: str
    ) -> bool:
        try:
            self._packed.attend()
            together = self._run(sequences, packed=True)
        except Exception as error:  # each architecture fails in its own way
            reason = first_line(error)
            log.warning("model %s: not %s, since that fails: %s", self._name, form, reason)
            return False
        lowest = float(cosines(np.stack(alone), together).min())
        if not lowest >= least_cosines.PACKED[self._dtype]:
            log.warning(
                "model %s: not %s, since its vectors differ (cosine %.5f)", self._name, form, lowest
            )
            return False
        return True

    def _run(self, sequences: Sequence[TokenIds], *, packed: bool) -> NDArray[np.float32]:
        if packed:
            ids, bounds, longest = lay_out([torch.from_numpy(s) for s in sequences])
            found = self._packed(ids.to(self._device), bounds.to(self._device), longest)
        else:
            ids, mask = (torch.from_numpy(part).to(self._device) for part in pad(sequences))
            found = self._padded(ids, mask)
        vectors: NDArray[np.float32] = found.cpu().numpy()
        return vectors

    def _random_sequences(self, lengths: Sequence[int]) -> list[TokenIds]:
        """Ids of the upper half of the vocabulary, where no special tokens are."""
        draw = np.random.default_rng(0)
        low, high = self._vocabulary_size // 2, self._vocabulary_size
        return [draw.integers(low, high, length, dtype=np.int32) for length in lengths]
