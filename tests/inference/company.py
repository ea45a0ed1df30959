"""A graph's vectors of texts that are alone, and of the same texts in any company.

All texts of a run are padded to one length, as by a server whose padded lengths are functions of the
text alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

THREADS = (1, 2, 4)  # of a session; tests that are wide on a machine of any size
TEXTS = 9
COMPANIES = (2, 3, 8, 9)


def differences(
    graph: Path, vocabulary: range, padded_lengths: Sequence[int]
) -> Iterator[tuple[str, float]]:
    """How far each text's vector is from the one of a single thread that computes it alone."""
    sessions = {threads: _open(graph, threads) for threads in THREADS}
    numbers = np.random.default_rng(0)
    for padded in padded_lengths:
        lengths = numbers.integers(max(1, padded - 7), padded + 1, TEXTS)
        mask = (np.arange(padded) < lengths[:, None]).astype(np.int64)
        ids = numbers.choice(vocabulary, mask.shape) * mask
        rows = [np.array([row]) for row in range(TEXTS)]
        alone = np.concatenate([_run(sessions[1], ids[row], mask[row]) for row in rows])
        for company in (*rows, *(numbers.permutation(TEXTS)[:size] for size in COMPANIES)):
            for threads, session in sessions.items():
                found = _run(session, ids[company], mask[company])
                case = f"{len(company)} texts padded to {padded}, {threads} threads"
                yield case, float(np.abs(found - alone[company]).max())


def _open(graph: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores are few
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(
    session: ort.InferenceSession, ids: NDArray[np.int64], mask: NDArray[np.int64]
) -> NDArray[np.float32]:
    (found,) = session.run(["embeddings"], {"input_ids": ids, "attention_mask": mask})
    vectors: NDArray[np.float32] = found
    return vectors
