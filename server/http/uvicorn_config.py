"""uvicorn, as this server wants it."""

from __future__ import annotations

from typing import Literal

import uvicorn
from fastapi import FastAPI

from server.http.listening import BACKLOG
from server.http.protocol import BoundedProtocol
from server.settings import Settings

# After the drain only answers are left to send; a client that stalls its upload is cut then.
CLOSE_TIMEOUT_S = 2


def uvicorn_config(
    app: FastAPI, settings: Settings, *, lifespan: Literal["on", "off"] = "on"
) -> uvicorn.Config:
    """The configuration of a server of this application."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_timeout_s,
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
        backlog=BACKLOG,
    )
