"""What one request's tokens cost its key, by how its work ends. Lives in the event loop's thread."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from server.access.budgets import Budgets
from server.access.keys import Key
from server.access.ledger import Ledger
from server.access.rate_limits import KeyLimits
from server.errors import InvalidRequest, Overloaded


@dataclass(slots=True)
class Spending:
    """Charges tokens for the work inside its context, and enters them into the ledger at its end.

    Work that fails or is given up costs nothing of the budget; work that is not begun because of
    too much other work, or since its input is wrong, costs no tokens of the minute either.
    """

    key: Key
    tokens: int
    model: str
    user: str | None
    limits: KeyLimits | None
    budgets: Budgets
    ledger: Ledger

    async def __aenter__(self) -> None:
        if self.limits is not None:
            await self.limits.take_tokens(self.tokens)
        try:
            await self.budgets.take(self.key, self.tokens)
        except BaseException:
            await self._give_back_minute()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.ledger.count(self.key, self.model, self.user, self.tokens)
            return
        self.budgets.give_back(self.key, self.tokens)
        if isinstance(error, Overloaded | InvalidRequest):
            await self._give_back_minute()

    async def _give_back_minute(self) -> None:
        if self.limits is not None:
            await self.limits.give_back_tokens(self.tokens)
