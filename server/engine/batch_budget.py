"""How many tokens a micro-batch may hold: less for a while when the memory was too short.

Pure: knows no threads or clock; whoever owns a BatchBudget guards it.
"""

from __future__ import annotations

# Where memory is short for a while anything may fail, and single texts would take far longer.
LOWEST_BUDGET_SHARE = 1 / 16
# After so many micro-batches of a lowered budget more is tried: the memory may be free again.
RAISE_BUDGET_AFTER = 500


class BatchBudget:
    """The token budget of the next micro-batch.

    Args:
        most_tokens: what it is as long as the memory suffices.
    """

    def __init__(self, most_tokens: int) -> None:
        self.tokens = most_tokens
        self._most_tokens = most_tokens
        self._batches_since_lowered = 0

    def lower(self, failed_tokens: int) -> int:
        """Make the budget smaller than a micro-batch that the memory was too short for.

        Args:
            failed_tokens: its size, padding counted.

        Returns:
            The new budget. It is doubled, up to what it was, whenever it has been used for
            RAISE_BUDGET_AFTER micro-batches.
        """
        lowest = max(1, int(LOWEST_BUDGET_SHARE * self._most_tokens))
        self.tokens = min(self.tokens, max(lowest, failed_tokens // 2))
        self._batches_since_lowered = 0
        return self.tokens

    def count_batch(self) -> None:
        """Note that one more micro-batch is made; the budget may be raised for it."""
        if self.tokens == self._most_tokens:
            return
        self._batches_since_lowered += 1
        if self._batches_since_lowered > RAISE_BUDGET_AFTER:
            self.tokens = min(2 * self.tokens, self._most_tokens)
            self._batches_since_lowered = 0
