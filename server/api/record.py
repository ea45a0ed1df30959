"""What is known of one request: whose it is, what it asked, and when each stage of it ran.

The one place from which log lines and metrics are made of it. Lives in the event loop's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from starlette.types import Scope

from server import logs
from server.access import keys
from server.access.keys import Key
from server.api.client_words import logged_method, logged_path
from server.errors import ApiError, MissingApiKey
from server.metrics import OTHER_ROUTE, ROUTES, STAGES, Metrics, refusal_reason

if TYPE_CHECKING:
    from server.access.rate_limits import KeyLimits

access_log = logging.getLogger(logs.ACCESS_LOGGER)

# Supervisors ask these every few seconds; only a refusal is worth a line.
PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
_STATE_KEY = "request_record"


class Stage:
    """A part of a request's way: enter it where it begins; it ends on exit, also by an error.

    Times are seconds of `time.perf_counter`.
    """

    __slots__ = ("begin_s", "end_s")

    def __init__(self, begin_s: float = 0.0, end_s: float = 0.0) -> None:
        self.begin_s = begin_s
        self.end_s = end_s

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.begin_s

    def __enter__(self) -> Self:
        self.begin_s = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end_s = time.perf_counter()


@dataclass(slots=True)
class RequestRecord:
    """Filled in while the request is answered; never holds a text or a secret."""

    request_id: str
    model: str = ""
    num_inputs: int = 0
    num_tokens: int = 0
    error: ApiError | None = None
    # Whose request it is, or why a route that asks for a key refuses it; None: not known yet.
    caller: Key | ApiError | None = None
    limits: KeyLimits | None = None  # of its key, if that has any a minute
    whole: Stage = field(default_factory=Stage)  # from the request's head to its answer
    stages: dict[str, Stage] = field(default_factory=dict)  # by the names in metrics.STAGES
    # Give back what the request holds, once its answer is sent.
    give_back: list[Callable[[], None]] = field(default_factory=list)

    @classmethod
    def begin(cls, scope: Scope, request_id: str) -> RequestRecord:
        """The record of a request whose head has come; kept where `of` finds it."""
        record = cls(request_id)
        record.whole.begin_s = time.perf_counter()
        scope.setdefault("state", {})[_STATE_KEY] = record
        return record

    @staticmethod
    def of(scope: Scope) -> RequestRecord:
        """The record of this request."""
        record = scope["state"][_STATE_KEY]
        assert isinstance(record, RequestRecord)
        return record

    def require_key(self, scope: keys.Scope) -> Key:
        """Let the request in by its API key, before anybody looks at its body.

        Raises:
            AuthenticationFailed: the key is missing, unknown or no longer valid.
            ScopeMissing: it was not made for this.
        """
        if self.caller is None:
            raise MissingApiKey
        if isinstance(self.caller, ApiError):
            raise self.caller
        self.caller.check_scope(scope)
        return self.caller

    def stage(self, name: str) -> Stage:
        """The stage of this name; `with` it, its time is known, also if it fails."""
        stage = self.stages[name] = Stage()
        return stage

    def split_compute(self, wait_s: float, compute_s: float) -> None:
        """Tell how much of the stage `compute`, which has ended well, was waiting for a worker."""
        begin_s = self.stages["compute"].begin_s
        begun_s = begin_s + wait_s
        self.stages["wait"] = Stage(begin_s, begun_s)
        self.stages["compute"] = Stage(begun_s, begun_s + compute_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request's head came."""
        return time.perf_counter() - self.whole.begin_s

    def end(self) -> None:
        """The answer is sent, or was given up."""
        for give_back in self.give_back:
            give_back()
        self.whole.end_s = time.perf_counter()

    def report(self, scope: Scope, status: int, metrics: Metrics) -> None:
        """Tell the metrics and the log of the request, after its end.

        Args:
            status: of the answer.
        """
        self._count(scope, status, metrics)
        self._log(scope, status)

    def _count(self, scope: Scope, status: int, metrics: Metrics) -> None:
        route: str = getattr(scope.get("route"), "path", None) or scope["path"]
        route = route.removesuffix("/")
        route = route if route in ROUTES else OTHER_ROUTE
        metrics.requests.labels(route, str(status), self.model).inc()
        metrics.request_seconds.labels(route).observe(self.whole.seconds)
        if self.error is not None:
            metrics.refusals.labels(refusal_reason(self.error)).inc()
        elif status == 200:
            for name, stage in self.stages.items():
                metrics.stage_seconds.labels(name, self.model).observe(stage.seconds)
            if "compute" in self.stages:
                metrics.inputs.labels(self.model).inc(self.num_inputs)
                metrics.input_tokens.labels(self.model).inc(self.num_tokens)

    def _log(self, scope: Scope, status: int) -> None:
        """One line: whose request, what was asked, how it ended and where the time went."""
        level = logging.DEBUG if scope["path"] in PROBES and status == 200 else logging.INFO
        if not access_log.isEnabledFor(level):
            return
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "method": logged_method(scope["method"]),
            "path": logged_path(scope["path"]),
            "status": status,
        }
        if self.error is not None:
            fields["error"] = refusal_reason(self.error)
        if self.model:
            fields["model"] = self.model
        if self.num_inputs:
            fields |= {"inputs": self.num_inputs, "tokens": self.num_tokens}
        stages = {"total": self.whole, **{s: self.stages[s] for s in STAGES if s in self.stages}}
        fields["ms"] = {name: round(stage.seconds * 1000.0, 2) for name, stage in stages.items()}
        access_log.log(level, "request", extra={"fields": fields})
