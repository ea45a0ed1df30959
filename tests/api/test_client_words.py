"""Whatever a client puts its key into, neither log nor metrics nor an answer repeats it."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.access.access import Access
from server.access.keys import new_secret
from server.api.client_words import answered_path, counted_user, logged_method, logged_path
from server.logs import JsonFormatter
from server.metrics import ROUTES
from server.settings import Settings
from tests.conftest import PLAIN, AppOver, client_of
from tests.fakes import FakeBackend

OURS = new_secret()
OWN_WORDS = "correct-horse.battery"  # as people choose keys themselves
UNKNOWN = new_secret()
PATHS: dict[str, Callable[[str], str]] = {
    "path": lambda key: f"/v1/embeddings/{key}",
    "model path": lambda key: f"/v1/models/{key}",
    "encoded path": lambda key: "/" + "".join(f"%{ord(letter):02x}" for letter in key),
    "query": lambda key: f"/livez?api-key={key}",
}
HEADERS = (
    "x-request-id", "host", "user-agent", "content-type", "content-encoding", "authorization",
    "x-expect-embedding-fingerprint", "x-api-key", "cookie",
)  # fmt: skip
FIELDS = ("model", "user", "safety_identifier", "input_type", "dimensions", "encoding_format")
PLACES = (*PATHS, *HEADERS, *FIELDS, "method", "part of the id", "a field's name", "body", "input")


@given(st.text(max_size=300))
def test_a_path_is_logged_by_its_known_parts_alone(path: str) -> None:
    shown = logged_path("/" + path)
    known = {segment for route in ROUTES for segment in route.split("/")}
    assert shown.startswith("/")
    assert set(shown.split("/")) <= known | {"*"}
    assert len(shown) <= 200


def test_a_path_that_is_nearly_right_can_be_told_from_the_log() -> None:
    assert logged_path("/v1/v1/embeddings/") == "/v1/v1/embeddings/"
    assert logged_path("/api/embeddings") == "/*/embeddings"
    assert logged_path("/v1/models/sk-secret") == "/v1/models/*"
    assert logged_path("/v1" * 3000) == "/v1" * 7 + "/*"
    assert logged_method("POST") == "POST"
    assert logged_method("sk-secret") == "*"


def test_an_answer_names_the_path_that_was_asked_for_unless_it_holds_a_key() -> None:
    access = Access(Settings(api_key=[OURS]))
    assert answered_path("/v2/embed%20dings", access, None) == "/v2/embed%20dings"
    for path in (f"/v1/{OURS}", f"/v1/{OURS.replace('s', '%73')}"):
        assert answered_path(path, access, None) == "/v1/*"


def test_a_user_is_counted_by_name_unless_it_is_a_key() -> None:
    access = Access(Settings(api_key=[OURS, OWN_WORDS]))
    assert counted_user("user-42", access) == "user-42"
    assert counted_user(None, access) is None
    for key in (OURS, OWN_WORDS, UNKNOWN, f"key={OURS}"):
        assert counted_user(key, access) == "(a key)"


def request_with(key: str, place: str) -> dict[str, Any]:
    """A request that has the key there, as httpx takes it."""
    body: dict[str, Any] = {"model": PLAIN, "input": "x"}
    odd: dict[str, Any] = {
        "method": {"method": key},
        "part of the id": {"headers": {"x-request-id": f"key={key}/7"}},
        "a field's name": {"json": {**body, key: 1}},
        "body": {"json": key},
        "input": {"json": {**body, "input": [key, []]}},
    }
    if place in PATHS:
        odd[place] = {"method": "GET", "url": PATHS[place](key)}
    elif place in HEADERS:
        odd[place] = {"headers": {place: key}}
    elif place in FIELDS:
        odd[place] = {"json": {**body, place: key}}
    return {"method": "POST", "url": "/v1/embeddings", "headers": {}, "json": body, **odd[place]}


@pytest.mark.parametrize("key", [OURS, OWN_WORDS, UNKNOWN], ids=["ours", "own words", "unknown"])
async def test_a_key_at_any_place_of_a_request_is_never_told_again(
    app_over: AppOver, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    caplog.set_level(logging.DEBUG, "server")
    app = await app_over(FakeBackend(), api_key=[OURS, OWN_WORDS])
    async with client_of(app) as client:
        for place in PLACES:
            for bearer in (OURS, secrets.token_hex()):
                request = request_with(key, place)
                request["headers"] = {"Authorization": f"Bearer {bearer}", **request["headers"]}
                answer = await client.request(**request)
                assert key not in answer.text, place
                assert key not in str(answer.headers), place
        metrics = (await client.get("/metrics")).text
    assert len(caplog.records) >= 2 * len(PLACES)
    log = "\n".join(JsonFormatter().format(record) for record in caplog.records)
    assert key not in log
    assert key not in metrics


async def test_the_begin_of_a_key_is_not_told_where_a_long_text_is_cut(app_over: AppOver) -> None:
    app = await app_over(FakeBackend(), api_key=[OURS])
    headers = {"Authorization": f"Bearer {OURS}"}
    async with client_of(app) as client:
        for length in (33, 42, 92, 192):  # a little less than what is shown of each
            text = "x" * length + " " + OURS
            for place in ("model", "input_type", "a field's name", "content-encoding"):
                request = request_with(text, place)
                request["headers"] = {**request["headers"], **headers}
                answer = await client.request(**request)
                assert answer.status_code >= 400
                assert OURS[:6] not in answer.text, (place, length)
            pinned = headers | {"x-expect-embedding-fingerprint": text}
            answer = await client.post(
                "/v1/embeddings", json={"model": PLAIN, "input": "a"}, headers=pinned
            )
            assert OURS[:6] not in answer.text


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.text("abcXYZ019_-", min_size=16, max_size=60),
    place=st.sampled_from(PLACES),
    around=st.sampled_from(["{}", "key={}", "{}.1", "a:{}/b"]),
)
def test_a_random_key_is_in_no_id_and_in_no_path_of_a_log(
    key: str, place: str, around: str
) -> None:
    access = Access(Settings(api_key=[key]))
    sent = around.format(key)
    assert key not in access.conceal(sent)
    assert key not in access.conceal(json.dumps({place: sent}))
    assert key not in logged_path(f"/v1/{sent}/{place}")
    with contextlib.suppress(httpx.InvalidURL):
        assert key not in answered_path(quote(f"/v1/{sent}"), access, None)
