from __future__ import annotations

from server.engine.sequence import MicroBatch
from tests.engine import group_of


def test_a_micro_batch_costs_its_padding_unless_it_is_packed() -> None:
    group = group_of(3, 1, key="somebody")
    padded, packed = MicroBatch(group.sequences), MicroBatch(group.sequences, packed=True)
    assert (padded.tokens, padded.padded_tokens) == (4, 6)
    assert (packed.tokens, packed.padded_tokens) == (4, 4)
    assert [half.packed for half in (*padded.halves(), *packed.halves())] == [False] * 2 + [
        True
    ] * 2


def test_halves_keep_every_sequence() -> None:
    group = group_of(*[1] * 5)
    first, second = MicroBatch(group.sequences).halves()
    assert first.sequences + second.sequences == group.sequences
    assert len(first) == 2


def test_a_group_uses_the_share_of_its_tickets_key() -> None:
    assert group_of(1, key="somebody").key == "somebody"
