from __future__ import annotations

import pytest

from server.engine.sequence import MicroBatch
from server.inference.backend import Layout
from tests.engine import group_of


@pytest.mark.parametrize(
    ("layout", "cost"),
    [
        (Layout.PACKED, 4),
        (Layout.BY_LENGTH, 4 + 2),
        (Layout.BY_COARSE_LENGTH, 8 + 8),
        (Layout.PADDED, 2 * 3),
    ],
)
def test_a_micro_batch_costs_its_padding(layout: Layout, cost: int) -> None:
    micro_batch = MicroBatch(group_of(3, 1).sequences, layout)
    assert (micro_batch.tokens, micro_batch.padded_tokens) == (4, cost)
    assert [half.layout for half in micro_batch.halves()] == [layout] * 2


def test_halves_keep_every_sequence() -> None:
    group = group_of(*[1] * 5)
    first, second = MicroBatch(group.sequences).halves()
    assert first.sequences + second.sequences == group.sequences
    assert len(first) == 2


def test_a_group_uses_the_share_of_its_tickets_key() -> None:
    assert group_of(1, key="somebody").key == "somebody"
