"""What is known of one request when it has been answered: for its log line and the metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import Scope

from server.access.keys import Key
from server.errors import ApiError, MissingApiKey

if TYPE_CHECKING:
    from server.access.rate_limits import KeyLimits

_STATE_KEY = "request_record"


@dataclass(slots=True)
class RequestRecord:
    """Filled in while the request is answered; never holds a text or a secret."""

    request_id: str
    started_s: float = field(default_factory=time.perf_counter)
    model: str = ""
    num_inputs: int = 0
    num_tokens: int = 0
    stages_s: dict[str, float] = field(default_factory=dict)  # by the names in metrics.STAGES
    error: ApiError | None = None
    # Whose request it is, or why a route that asks for a key refuses it.
    caller: Key | ApiError = field(default_factory=MissingApiKey)
    limits: KeyLimits | None = None  # of its key, if that has any a minute

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside as this stage, also if it fails there."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.stages_s[name] = time.perf_counter() - began_s

    def put_into(self, scope: Scope) -> None:
        """Let what answers this request find the record."""
        scope.setdefault("state", {})[_STATE_KEY] = self

    @staticmethod
    def of(scope: Scope) -> RequestRecord:
        """The record of this request."""
        record = scope["state"][_STATE_KEY]
        assert isinstance(record, RequestRecord)
        return record
