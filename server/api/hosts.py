"""For which names the server answers, so that no foreign web page reaches it by a name of its own.

A page in a browser may let its own name point to 127.0.0.1 (DNS rebinding) and then ask a server
that asks for no key. Pure; any thread may call.
"""

from __future__ import annotations

import fnmatch
import functools
import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

from server.errors import InvalidRequest, SettingError, UntrustedHost
from server.settings import is_loopback

# A name may end in a dot, and an address of IPv6 name an interface (RFC 6874); both say the same
# without. Blanks around the value are none of it (RFC 9110, 5.5), which httptools leaves behind.
_HOST = re.compile(
    r"[ \t]*(?:\[(?P<six>[0-9A-Fa-f:.]+)(?:%[\w.~%-]+)?\]|(?P<name>[^\[\]:@/\s]+))(?::\d*)?[ \t]*"
)


class HostRule:
    """Which `Host` a request may name.

    Args:
        trusted: patterns as `*.example.com`; empty: all, but for a server that asks for no key and
            listens on this machine alone: there, this machine's own names.

    Raises:
        SettingError: a pattern is none of hosts.
    """

    def __init__(self, trusted: Sequence[str], *, listens_locally: bool) -> None:
        self._trusted = tuple(map(_read_pattern, trusted))
        self._listens_locally = listens_locally

    def check(self, scope: Scope, headers: Headers, *, asks_for_keys: bool) -> None:
        """Look at a request's head.

        Raises:
            InvalidRequest: it names no host, or several.
            UntrustedHost: one for which this server does not answer.
        """
        named = headers.getlist("host")
        if not named and scope["http_version"] == "1.0":  # some probes of balancers
            return
        host = _read_host(named[0]) if len(named) == 1 else None
        if host is None:
            raise InvalidRequest(
                "The request must have exactly one Host header, with a host; "
                "a target that is a whole URL must name one, too, and no user."
            )
        if self._trusted:
            trusted = any(fnmatch.fnmatchcase(host, pattern) for pattern in self._trusted)
        elif self._listens_locally and not asks_for_keys:
            trusted = _is_this_machine(host)
        else:
            return
        if not trusted:
            raise UntrustedHost(host)


def names_this_machine(headers: Headers) -> bool:
    """Whether a request's `Host` names this machine, or there is none."""
    named = headers.getlist("host")
    return not named or _is_this_machine(_read_host(named[0]) or "")


def _is_this_machine(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost") or is_loopback(host)


@functools.lru_cache(maxsize=16)  # most clients name the same
def _read_host(value: str) -> str | None:
    """The host that a `Host` header names, without its port; None if it names none."""
    found = _HOST.fullmatch(value)
    return (found["six"] or found["name"].removesuffix(".")).lower() if found else None


def _read_pattern(value: str) -> str:
    """As people may say it: also with a port, which says nothing, or an address in brackets."""
    pattern = value if _is_address(value) else _read_host(value)
    if pattern is None:
        raise SettingError(
            f"setting trusted_host: {value!r} is no host: a name or address, without http://"
        )
    return pattern.lower()


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True
