"""The address: sockets that listen on it, and the line that tells people about it.

Knows nothing of the HTTP framework.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from typing import Any

from server.errors import AddressError
from server.program.standard_streams import print_beside
from server.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on this address.

    Raises:
        AddressError: the address is in use, unknown or not allowed.
    """
    try:
        family, address = _resolve(host, port)
        return socket.create_server(
            address, family=family, backlog=BACKLOG, dualstack_ipv6=_takes_ipv4_too(address[0])
        )
    except (OSError, UnicodeError) as error:  # UnicodeError: no host name at all
        raise _address_error(host, port, error) from error


class SharedAddress:
    """An address on which several processes listen, each on a socket of its own.

    The kernel spreads new connections over those sockets (Linux's SO_REUSEPORT); where it does not,
    all have one socket and whoever is free takes the next connection.

    Raises:
        AddressError: the address is in use, unknown or not allowed.
    """

    def __init__(self, host: str, port: int) -> None:
        self._kernel_spreads = sys.platform == "linux"
        try:
            self._family, address = _resolve(host, port)
            # Never listens where the kernel spreads: it only keeps the port. Bound as if it were
            # the only one, or a second server would share an address in use instead of failing.
            self._first = socket.socket(self._family, socket.SOCK_STREAM)
            try:
                self._bind(self._first, address)
                self._address = self._first.getsockname()
                if self._kernel_spreads:
                    self._first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    self.listener().close()  # others may listen on it in spite of the binding
                else:
                    self._first.listen(BACKLOG)
            except BaseException:
                self._first.close()
                raise
        except (OSError, UnicodeError) as error:
            raise _address_error(host, port, error) from error

    @property
    def port(self) -> int:
        """The port, also if a free one was asked for."""
        port: int = self._address[1]
        return port

    def listener(self, *, at_once: bool = True) -> socket.socket:
        """A socket for one process, which listens.

        Args:
            at_once: if not, only once that process has it listen: clients are then sent to others
                that listen, where the kernel spreads them.
        """
        if not self._kernel_spreads:
            return self._first.dup()
        listener = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._bind(listener, self._address)
            if at_once:
                listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener

    def close(self) -> None:
        """Keep the port no more."""
        self._first.close()

    def _bind(self, listener: socket.socket, address: Any) -> None:
        """As socket.create_server does."""
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._family == socket.AF_INET6:
            ipv6_only = not _takes_ipv4_too(address[0])
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, ipv6_only)
        listener.bind(address)


def allow_many_connections() -> None:
    """Raise the soft limit of open files, often 1,024, to the hard one: each client takes one.

    Beyond the limit accepting would fail instead of waiting in the backlog.
    """
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says "unlimited" and means less
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def announce(settings: Settings, port: int, *, asks_for_keys: bool) -> None:
    """Print the line that tells that the server is ready, and how to try it.

    Where standard output does not take it the log has it: that is no reason not to serve.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host else host
    key = " -H 'Authorization: Bearer YOUR_KEY'" if asks_for_keys else ""
    line = (
        f"Ready. Try: curl http://{host}:{port}/v1/embeddings -H 'Content-Type: application/json'"
        f"""{key} -d '{{"model": "{settings.model[0]}", "input": "Hello, world"}}'"""
    )
    print_beside(line, lambda error: log.warning("standard output: %s. %s", error.strerror, line))


def tell_metrics_port(host: str, port: int) -> None:
    """Tell the log where /metrics is, if it has a port of its own: that may be a free one."""
    log.info("/metrics is on %s port %d", host, port)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), port)


def _takes_ipv4_too(address: str) -> bool:
    """Whether it means every address of the machine; else only those of its own family."""
    return address == "::" and socket.has_dualstack_ipv6()


def _address_error(host: str, port: int, error: Exception) -> AddressError:
    reason = getattr(error, "strerror", None) or str(error)
    return AddressError(f"cannot listen on {host} port {port}: {reason}")
