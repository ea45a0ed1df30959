from __future__ import annotations

import numpy as np

from server.engine.sequence import MicroBatch
from tests.engine import group_of


def test_padding_is_on_the_right_and_masked() -> None:
    group = group_of(3, 1, key="somebody")
    group.sequences[0].token_ids[:] = [5, 6, 7]
    group.sequences[1].token_ids[:] = [8]
    micro_batch = MicroBatch(group.sequences)
    input_ids, attention_mask = micro_batch.padded()
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert input_ids.dtype == attention_mask.dtype == np.int64
    assert micro_batch.padded_tokens == input_ids.size


def test_halves_keep_every_sequence() -> None:
    group = group_of(*[1] * 5)
    first, second = MicroBatch(group.sequences).halves()
    assert first.sequences + second.sequences == group.sequences
    assert len(first) == 2


def test_a_group_uses_the_share_of_its_tickets_key() -> None:
    assert group_of(1, key="somebody").key == "somebody"
