"""Everything the routes work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fastapi import Request

from server.access.access import Access
from server.api.large_bodies import LargeBodies
from server.api.seats import Seats
from server.engine.offering import Offering
from server.metrics import Metrics
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """Everything the routes work with; one a process, kept at `app.state.services`."""

    settings: Settings
    access: Access
    models: Offering
    metrics: Metrics
    seats: Seats
    metrics_page: Callable[[Metrics], Awaitable[bytes]]
    large_bodies: LargeBodies = field(default_factory=LargeBodies)


def services_of(request: Request) -> Services:
    """The process's services."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found
