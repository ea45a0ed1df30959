"""/openapi.json says what is true: schemathesis looks for a request that shows otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from scripts.prove.openapi import KEY, prove
from server.errors import ApiError, MethodNotAllowed, UrlNotFound, api_errors
from server.http.app import create_app
from server.settings import Settings
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess

Schema = dict[str, Any]
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture(scope="module")
def description() -> Schema:
    return create_app(Settings(api_key=[KEY])).openapi()


def operations(description: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


@pytest.mark.server
def test_schemathesis_finds_nothing() -> None:
    with ServerProcess("--api-key", KEY) as server:
        flags = ("--max-examples", "15", "--seed", "16", "--generation-deterministic")
        patient = ("--suppress-health-check", "too_slow", "--request-timeout", "60")
        found = prove(server, *flags, *patient, "--no-shrink")
        page = MetricsPage(httpx.get(f"{server.url}/metrics").content)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "No issues found" in found.stdout
    asked = {
        labels["status"]
        for labels, value in page.having("requests_total", route=EMBEDDINGS)
        if value
    }
    assert {"200", "400", "401", "404"} <= asked


def test_every_status_of_an_error_is_told_with_its_type_codes_and_headers(
    description: Schema,
) -> None:
    told = description["paths"][EMBEDDINGS]["post"]["responses"]
    elsewhere = {UrlNotFound, MethodNotAllowed}  # not on a path and with a method that there is
    errors = [error for error in api_errors() if error not in elsewhere]
    assert set(told) == {"200", *(str(error.status) for error in errors)}
    for error in errors:
        answer = told[str(error.status)]
        schema = answer["content"]["application/json"]["schema"]["properties"]["error"]
        assert schema["properties"]["type"]["const"] == error.type
        assert error.code in schema["properties"]["code"]["enum"]
        assert schema["required"] == ["message", "type", "param", "code"]
    for status, header in (
        ("401", "WWW-Authenticate"), ("415", "Accept-Encoding"), ("429", "Retry-After"),
        ("503", "Retry-After"),
    ):  # fmt: skip
        assert header in told[status]["headers"]
        assert description["components"]["headers"][header]["required"]


def test_every_answer_tells_its_request_and_every_operation_has_a_name_of_its_own(
    description: Schema,
) -> None:
    names = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(set(names)) == len(names)
    for path, _, operation in operations(description):
        assert {"200", str(ApiError.status)} <= set(operation["responses"]), path
        assert "422" not in operation["responses"]
        for answer in operation["responses"].values():
            assert {"x-request-id", "openai-processing-ms"} <= set(answer["headers"])


def test_a_key_is_named_only_where_one_is_asked_for(description: Schema) -> None:
    asking = {
        path: operation["security"]
        for path, _, operation in operations(description)
        if "security" in operation
    }
    key: Schema = {"bearer": []}
    assert asking == {
        EMBEDDINGS: [key],
        "/v1/models": [key],
        "/v1/models/{model_id}": [key],
        "/metrics": [{}, key],  # who asks on this machine needs none
    }
    scheme = description["components"]["securitySchemes"]["bearer"]
    assert scheme == {"type": "http", "scheme": "bearer"}
    keyless = create_app(Settings()).openapi()
    assert "securitySchemes" not in keyless["components"]
    assert not any("security" in operation for _, _, operation in operations(keyless))


def test_the_metrics_are_text_and_probes_by_head_have_no_content(description: Schema) -> None:
    metrics = description["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert metrics == {"text/plain": {"schema": {"type": "string"}}}
    for path in ("/livez", "/readyz", "/health"):
        answers = description["paths"][path]["head"]["responses"].values()
        assert not any("content" in answer for answer in answers)


def test_every_integer_and_every_text_of_a_request_has_its_bounds(description: Schema) -> None:
    body = description["paths"][EMBEDDINGS]["post"]["requestBody"]["content"]
    fields = body["application/json"]["schema"]["properties"]
    kinds = [kind for field in fields.values() for kind in _kinds(field)]
    integers = [kind for kind in kinds if kind.get("type") == "integer"]
    assert len(integers) == 3  # dimensions, and token ids in both forms
    assert all({"minimum", "maximum"} <= set(kind) for kind in integers)
    unbounded = [kind for kind in kinds if kind.get("type") == "string" and "maxLength" not in kind]
    # Texts end where the body does.
    assert all("enum" in kind or kind == {"type": "string", "minLength": 1} for kind in unbounded)
    nullable = {name for name, field in fields.items() if {"type": "null"} in _kinds(field)}
    assert nullable == set(fields) - {"model", "input"}


def _kinds(schema: Schema) -> list[Schema]:
    """The schema and all that it is made of."""
    inner = [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])]
    return [schema, *(kind for one in inner for kind in _kinds(one))]
