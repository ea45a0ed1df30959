"""Targets that are whole URLs, which proxies send and every server must take (RFC 9112, 3.2.2)."""

from __future__ import annotations

import re

_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://(?P<host>[^/?#]*)")


def take_host_of_target(
    target: bytes, headers: list[tuple[bytes, bytes]], http_version: str
) -> bytes:
    """The target as a path; the host that a whole URL names takes the place of the header's.

    Args:
        target: with its query or without.
        headers: with names in lower case; changed.
        http_version: `1.0` or `1.1`.
    """
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    host = absolute["host"]
    is_named = any(name == b"host" for name, _ in headers)
    headers[:] = [(name, host if name == b"host" else it) for name, it in headers]
    if not is_named and http_version == "1.0":  # later ones must name it, too
        headers.append((b"host", host))
    return b"/" + target[absolute.end() :].removeprefix(b"/")
