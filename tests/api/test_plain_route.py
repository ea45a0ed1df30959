"""Which requests go to their function without FastAPI's routing."""

from __future__ import annotations

import gc
import weakref

import pytest
from fastapi import APIRouter, Request, Response

from server.api.error_responses import error_response
from server.api.plain_route import PlainRoute, plain_routes
from server.errors import ApiError
from tests.conftest import PLAIN, AppOver, client_of
from tests.fakes import FakeBackend

plain = APIRouter(route_class=PlainRoute)
other = APIRouter()


@plain.post("/one")
async def one(request: Request) -> Response:
    return Response()


@plain.api_route("/two", methods=["GET", "HEAD"])
async def two(request: Request) -> Response:
    return Response()


@plain.get("/three/{name}")
async def three(request: Request) -> Response:
    return Response()


@other.get("/four")
async def four() -> dict[str, str]:
    return {}


def test_those_for_a_plain_route_whose_path_is_always_the_same() -> None:
    assert plain_routes([plain, other]) == {
        ("POST", "/one"): one,
        ("GET", "/two"): two,
        ("HEAD", "/two"): two,
    }


async def test_other_methods_and_paths_are_answered_by_the_application(app_over: AppOver) -> None:
    async with client_of(await app_over(FakeBackend())) as client:
        body = {"model": PLAIN, "input": "x"}
        assert (await client.post("/v1/embeddings", json=body)).status_code == 200
        wrong_method = await client.get("/v1/embeddings")
        assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
        assert (await client.post("/v1/embeddings/", json=body)).status_code == 404


async def test_a_refusal_leaves_no_garbage_behind(
    app_over: AppOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals: list[weakref.ref[ApiError]] = []

    def noted(error: ApiError, *args: object) -> Response:
        refusals.append(weakref.ref(error))
        return error_response(error, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("server.api.request_context.error_response", noted)
    async with client_of(await app_over(FakeBackend())) as client:
        gc.collect()
        gc.disable()
        try:
            body = {"model": PLAIN, "input": "x", "dimensions": 2}
            assert (await client.post("/v1/embeddings", json=body)).status_code == 400
            assert [refused() for refused in refusals] == [None]
        finally:
            gc.enable()
