"""What of a client's own words may be told again: in a log line, a metric, an answer.

A client may put its key anywhere by mistake. So a log line has no word that only a client knows but
the id of its request, and that only if no key is in it. Lives in the event loop's thread.
"""

from __future__ import annotations

import urllib.parse

from starlette.datastructures import Headers

from server import logs
from server.access.access import Access
from server.metrics import ROUTES

OTHER = "*"
CONCEALED_USER = "(a key)"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SEGMENTS = frozenset(segment for route in ROUTES for segment in route.split("/"))
_MOST_SEGMENTS = 8


def logged_path(path: str) -> str:
    """The path, with `*` in place of each segment that is in none of this server's own paths."""
    if path in ROUTES:
        return path
    segments = path.split("/", _MOST_SEGMENTS)
    return "/".join(segment if segment in _SEGMENTS else OTHER for segment in segments)


def logged_method(method: str) -> str:
    """The method, or `*`: a client may name any."""
    return method if method in _METHODS else OTHER


def request_id(headers: Headers, access: Access) -> str:
    """The caller's id if it is short and plain and holds no key, else a new one."""
    sent = headers.get("x-request-id")
    if sent and access.conceal(sent, headers.get("authorization")) != sent:
        sent = None
    return logs.request_id(sent)


def answered_path(path: str, access: Access, authorization: str | None) -> str:
    """The path for an error's message: as it came, unless a key is in it, percent-encoded or not."""
    read = urllib.parse.unquote(path)
    return path if access.conceal(read, authorization) == read else logged_path(path)


def counted_user(user: str | None, access: Access) -> str | None:
    """Who a request is for, as the ledger may hold it."""
    return user if user is None or access.conceal(user) == user else CONCEALED_USER
