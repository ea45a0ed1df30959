"""GET /metrics: Prometheus' page."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from server.access.keys import Scope
from server.api.hosts import names_this_machine
from server.api.openapi import OF_KEYS, answers
from server.api.record import RequestRecord
from server.api.services import Services, services_of
from server.errors import Unavailable
from server.metrics import CONTENT_TYPE
from server.settings import is_loopback

router = APIRouter()


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=PlainTextResponse,
    responses=answers({"text/plain": {"type": "string"}}, *OF_KEYS, limited=True),
)
async def metrics(request: Request) -> Response:
    """The metrics; needs a key with the scope `admin` unless it is asked for on this machine or made public."""
    services = services_of(request)
    if not (services.settings.public_metrics or _is_local(request)):
        RequestRecord.of(request.scope).require_key(Scope.ADMIN)
    services.metrics.ready.set(_ready(services))
    page = await services.metrics_page(services.metrics)
    return Response(page, media_type=CONTENT_TYPE)


def _is_local(request: Request) -> bool:
    """Whether it comes from this machine, and from no web page whose name points to it."""
    if request.client is None or not is_loopback(request.client.host):
        return False
    return names_this_machine(request.headers)


def _ready(services: Services) -> bool:
    try:
        services.models.check_ready()
    except Unavailable:
        return False
    return True
