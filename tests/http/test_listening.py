from __future__ import annotations

import contextlib
import socket

import pytest

from server.errors import AddressError
from server.http.listening import SharedAddress, bind


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_several_sockets_listen_on_one_address_and_all_get_connections(host: str) -> None:
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(contextlib.closing(SharedAddress(host, 0)))
        listeners = [stack.enter_context(address.listener()) for _ in range(2)]
        assert [one.getsockname()[1] for one in listeners] == [address.port] * 2
        for _ in range(40):
            stack.enter_context(socket.create_connection((host, address.port), timeout=10))
        for listener in listeners:
            listener.settimeout(10)
            listener.accept()[0].close()


def test_a_socket_that_is_closed_leaves_its_connections_to_the_others() -> None:
    with contextlib.closing(SharedAddress("127.0.0.1", 0)) as address:
        with address.listener() as last:
            address.listener().close()
            for _ in range(10):
                with socket.create_connection(("127.0.0.1", address.port), timeout=10):
                    last.accept()[0].close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", address.port), timeout=10)


def test_a_socket_that_does_not_listen_yet_leaves_connections_to_the_others() -> None:
    with (
        contextlib.closing(SharedAddress("127.0.0.1", 0)) as address,
        address.listener() as others,
        address.listener(at_once=False) as later,
    ):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", address.port), timeout=10):
                others.accept()[0].close()
        others.close()
        later.listen()
        with socket.create_connection(("127.0.0.1", address.port), timeout=10):
            later.accept()[0].close()


def test_an_address_in_use_is_refused_whoever_uses_it() -> None:
    with contextlib.closing(SharedAddress("127.0.0.1", 0)) as address, address.listener():
        for take in (SharedAddress, bind):
            with pytest.raises(AddressError, match="Address already in use"):
                take("127.0.0.1", address.port)
    with bind("127.0.0.1", 0) as alone, pytest.raises(AddressError, match="already in use"):
        SharedAddress("127.0.0.1", alone.getsockname()[1])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 70])
def test_a_host_that_is_none_is_refused_by_its_name(host: str) -> None:
    with pytest.raises(AddressError, match=f"cannot listen on {host} port 0: "):
        SharedAddress(host, 0)


@pytest.mark.parametrize("shared", [False, True])
def test_all_addresses_of_ipv6_are_all_of_ipv4_too(shared: bool) -> None:
    with contextlib.ExitStack() as stack:
        if shared:
            address = stack.enter_context(contextlib.closing(SharedAddress("::", 0)))
            listener = stack.enter_context(address.listener())
        else:
            listener = stack.enter_context(bind("::", 0))
        listener.settimeout(10)
        for host in ("127.0.0.1", "::1"):
            where = (host, listener.getsockname()[1])
            stack.enter_context(socket.create_connection(where, timeout=10))
            listener.accept()[0].close()
