"""For which hosts a server answers."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from server.api.hosts import HostRule
from server.errors import InvalidRequest, SettingError, UntrustedHost
from tests.conftest import PLAIN, AppOver, client_of
from tests.fakes import FakeBackend

HTTP = {"type": "http", "http_version": "1.1"}


def check(
    *hosts: str, trusted: tuple[str, ...] = (), local: bool = True, keys: bool = False
) -> None:
    headers = Headers(raw=[(b"host", host.encode("latin-1")) for host in hosts])
    HostRule(trusted, listens_locally=local).check(HTTP, headers, asks_for_keys=keys)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8000", "app.localhost", "127.0.0.1:8000", "127.1.2.3"),
        *("localhost:", "localhost.", "localhost.:8000", " localhost\t"),
        *("[::1]", "[::1]:80", "[::1%25lo]:80", "[::ffff:127.0.0.1]"),
    ],
)
def test_a_keyless_server_of_this_machine_answers_for_its_names(host: str) -> None:
    check(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[::2]",
        "0",
        "evil.localhost.example.",
    ],
)
def test_it_answers_for_no_other_to_which_a_page_may_let_its_name_point(host: str) -> None:
    with pytest.raises(UntrustedHost, match="--trusted-host"):
        check(host)
    check(host, keys=True)
    check(host, local=False)
    check(host, trusted=("*",))


def test_trusted_hosts_are_the_only_ones() -> None:
    trusted = ("Embeddings.example.com", "*.inner")
    for host in ("embeddings.example.com:443", "a.b.inner", "a.inner."):
        check(host, trusted=trusted, keys=True, local=False)
    for host in ("example.com", "inner", "localhost"):
        with pytest.raises(UntrustedHost):
            check(host, trusted=trusted, keys=True, local=False)


@pytest.mark.parametrize(
    ("trusted", "host"),
    [
        *(("::1", "[::1]:80"), ("[::1]", "[::1]"), ("[FE80::1%eth0]", "[fe80::1%25eth1]")),
        *(("10.0.0.1", "10.0.0.1:1"), ("a.example:8000", "a.example"), ("a.example.", "a.example")),
    ],
)
def test_a_trusted_host_may_be_said_as_addresses_say_it(trusted: str, host: str) -> None:
    check(host, trusted=(trusted,))
    for other in ("b.example", "1", "[::2]"):
        with pytest.raises(UntrustedHost):
            check(other, trusted=(trusted,))


@pytest.mark.parametrize("pattern", ["", "http://a.example", "a b", "a/b", "[::1"])
def test_a_trusted_host_that_is_none_is_told_at_the_start(pattern: str) -> None:
    with pytest.raises(SettingError, match="trusted_host"):
        check("localhost", trusted=(pattern,))


@pytest.mark.parametrize(
    "hosts",
    [
        *((), ("a", "a"), ("localhost", "evil"), ("",), ("a b",), ("u@localhost",)),
        *(("a/b",), ("a:b",), ("[::1",), ("::1",), ("[::1%]",), ("[::1]x",)),
    ],
)
def test_no_host_two_or_none_that_is_one_is_refused(hosts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="exactly one Host"):
        check(*hosts, keys=True, local=False)


def test_a_probe_of_http_1_0_needs_none() -> None:
    scope = {**HTTP, "http_version": "1.0"}
    HostRule((), listens_locally=True).check(scope, Headers(raw=[]), asks_for_keys=False)


async def test_the_refusal_is_in_the_one_shape_and_counted(app_over: AppOver) -> None:
    app = await app_over(FakeBackend())
    async with client_of(app) as client:
        answer = await client.get("/v1/models", headers={"host": "evil.example"})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "untrusted_host"
        assert answer.headers["x-request-id"]
        assert "untrusted_host" in (await client.get("/metrics")).text


@pytest.mark.parametrize("path", ["/%6detrics", "/%761/models", "/livez%2f", "/%2e/metrics"])
async def test_a_path_is_taken_as_it_came(app_over: AppOver, path: str) -> None:
    app = await app_over(FakeBackend())
    async with client_of(app) as client:
        assert (await client.get(path)).status_code == 404


async def test_a_models_id_may_be_encoded(app_over: AppOver) -> None:
    app = await app_over(FakeBackend())
    async with client_of(app) as client:
        encoded = PLAIN.replace("-", "%2D")
        assert (await client.get(f"/v1/models/{encoded}")).json()["id"] == PLAIN
