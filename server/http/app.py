"""The ASGI application: routes, errors, and a lifespan that loads and closes the models."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI

from server import __version__, logs
from server.access.access import Access
from server.api import error_responses
from server.api.hosts import HostRule
from server.api.openapi import describe
from server.api.plain_route import plain_routes
from server.api.request_context import RequestContext
from server.api.routes import embeddings, health
from server.api.routes import metrics as metrics_route
from server.api.routes import models as models_routes
from server.api.seats import Seats
from server.api.services import Services
from server.engine.interface import Phase
from server.engine.offering import Offering
from server.errors import StartupError
from server.metrics import Metrics
from server.program.rust_panics import panics_as_errors
from server.settings import Settings

log = logging.getLogger(__name__)


async def page_of_this_process(metrics: Metrics) -> bytes:
    """All there is to show if there is one process."""
    return metrics.page()


def create_app(
    settings: Settings,
    offering: Offering | None = None,
    access: Access | None = None,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_failure: Callable[[StartupError], None] = lambda error: None,
    metrics_page: Callable[[Metrics], Awaitable[bytes]] = page_of_this_process,
) -> FastAPI:
    """The application for these settings; `app.state.services` holds what its routes work with.

    Cards and files are looked at here; the models are read while the application already answers
    (`/readyz` says when they are there).

    Args:
        offering: the models to serve, if their reading has begun already.
        access: the keys and limits, if they were opened already.
        on_ready: called once all models are loaded.
        on_failure: called if one cannot be; the server stays unready.
        metrics_page: what /metrics shows.

    Raises:
        StartupError: a card, a file or a setting is missing or wrong.
    """
    if offering is None:
        from server.engine.resident_models import ResidentModels  # a front end does without

        offering = Offering(ResidentModels.find(settings))
    cards = offering.registry.cards
    metrics = Metrics((card.name for card in cards), (card.name for card in offering.encoder_cards))
    access = access or Access(settings)
    access.report_to(metrics)
    seats = Seats.of(settings)
    metrics.request_memory_bytes.set_function(lambda: seats.held_bytes)
    metrics.dropped_log_lines.set_function(logs.dropped_lines)
    services = Services(settings, access, offering, metrics, seats, metrics_page)

    # The pages at /docs would load their scripts from a CDN, which an air-gapped site cannot reach.
    app = FastAPI(
        title="embedding-server",
        version=__version__,
        lifespan=_lifespan(services, on_ready, on_failure),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect of a POST loses its body with many clients
    )
    app.state.services = services
    described = functools.cache(functools.partial(describe, app))  # which takes some milliseconds
    app.openapi = lambda: described(asks_for_keys=access.asks_for_keys)  # type: ignore[method-assign]
    routes = [embeddings, models_routes, health]
    if settings.metrics_port is None:
        routes.append(metrics_route)
    _offer(app, *(route.router for route in routes), listens_locally=settings.listens_locally)
    return app


def create_metrics_app(services: Services) -> FastAPI:
    """An application that answers for /metrics alone, on a port of its own."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.state.services = services
    _offer(app, metrics_route.router, listens_locally=services.settings.metrics_listen_locally)
    return app


def _offer(app: FastAPI, *routers: APIRouter, listens_locally: bool) -> None:
    """The routes of one port, and what every request goes through."""
    services: Services = app.state.services
    hosts = HostRule(services.settings.trusted_host, listens_locally=listens_locally)
    app.add_middleware(
        RequestContext,
        metrics=services.metrics,
        access=services.access,
        hosts=hosts,
        plain_routes=plain_routes(routers),
    )
    error_responses.install(app)
    for router in routers:
        app.include_router(router)


def _lifespan(
    services: Services, on_ready: Callable[[], None], on_failure: Callable[[StartupError], None]
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Load the models beside the first answers, and drain before the end."""
    offering, access = services.models, services.access

    async def load() -> None:
        try:
            with panics_as_errors():
                await offering.load(services.metrics)
        except StartupError as error:
            on_failure(error)
        except Exception as error:
            log.exception("loading failed")
            on_failure(StartupError(f"loading the models failed: {error}"))
        else:
            if offering.phase is Phase.READY:
                on_ready()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        access.start()
        yield
        # Over already if a server of ours has drained; another one knows the lifespan only.
        await offering.finish(services.settings.drain_timeout_s)
        loading.cancel()
        offering.close()
        await access.close()

    return lifespan
