"""`scripts/prove/words.py`, in small."""

from __future__ import annotations

from scripts.prove.words import BothWays, around_each


def test_texts_with_other_ids_are_told() -> None:
    both = BothWays()
    assert both.differing(around_each(100)) == []
    both.by_words = lambda texts: both.whole([text.replace("é", "x") for text in texts])
    assert both.differing(["a", "é", "b"]) == ["é", "é"]
