"""Models that do not compute any more, and the end of waiting for them.

Lives in the event loop's thread of the process that computes. Knows nothing of devices: a model is
as it says itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from server.engine.offering import OfferedModel
from server.engine.patience import PATIENCE, Patience
from server.errors import GivenUp

log = logging.getLogger(__name__)


class BrokenModels:
    """For how many seconds each model has failed, in seconds of the process's own life.

    A process that was stopped, or whose machine was, finds old times when it goes on: so calls are
    counted.

    Args:
        models: those to look at.
        patience: says when it is too long.
    """

    def __init__(self, models: Sequence[OfferedModel], patience: Patience = PATIENCE) -> None:
        self._models = models
        self._patience = patience
        self._failing_s = [0] * len(models)

    def count_second(self) -> None:
        """Another second has gone by.

        Raises:
            GivenUp: a model has failed for too long.
        """
        for number, model in enumerate(self._models):
            failing_s = 0 if model.state.sound else self._failing_s[number] + 1
            self._failing_s[number] = failing_s
            if failing_s >= self._patience.give_up_after_s:
                raise GivenUp(
                    f"model {model.card.name} has computed nothing for {failing_s} s: the server ends, "
                    "to be started anew"
                )
            if failing_s == 1:  # it may be stuck in a pass, of which nothing else tells
                log.error(
                    "model %s does not compute; in %.0f s the server ends",
                    model.card.name,
                    self._patience.give_up_after_s,
                )
