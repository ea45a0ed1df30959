from __future__ import annotations

import numpy as np

from server.engine.sequence import MicroBatch, SequenceGroup


async def test_padding_is_on_the_right_and_masked() -> None:
    group = SequenceGroup([np.array([5, 6, 7], np.int32), np.array([8], np.int32)], 4)
    input_ids, attention_mask = MicroBatch(group.sequences).padded()
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert input_ids.dtype == attention_mask.dtype == np.int64


async def test_halves_keep_every_sequence() -> None:
    group = SequenceGroup([np.array([i], np.int32) for i in range(1, 6)], 4)
    first, second = MicroBatch(group.sequences).halves()
    assert first.sequences + second.sequences == group.sequences
    assert len(first) == 2
