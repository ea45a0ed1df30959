"""POST /v1/embeddings as contract.md has it, over real HTTP."""

from __future__ import annotations

import base64
import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.fingerprint_pin import EXPECT_FINGERPRINT, FINGERPRINT
from server.catalog.card import Card
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY, AppOver, client_of
from tests.different_texts import different_texts
from tests.fakes import FakeBackend
from tests.metrics_page import MetricsPage
from tests.server_process import ServerProcess
from tests.waiting import wait_for

pytestmark = pytest.mark.server

ERROR_KEYS = {"message", "type", "param", "code"}


def post(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/embeddings", json={"model": PLAIN, "input": "x", **fields})


def refusal(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == ERROR_KEYS
    return error


def rows(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    return [row["embedding"] for row in response.json()["data"]]


def test_the_answer_has_openais_shape(http: httpx.Client, plain_card: Card) -> None:
    response = post(http, input=["hello world", "hello"], user="someone", safety_identifier="s")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-embedding-fingerprint"] == plain_card.fingerprint
    answer = response.json()
    assert set(answer) == {"object", "data", "model", "usage"}
    assert answer["object"] == "list"
    assert answer["model"] == PLAIN
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}  # with [CLS] and [SEP]
    assert [(row["object"], row["index"]) for row in answer["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert all(set(row) == {"object", "index", "embedding"} for row in answer["data"])
    assert all(len(row["embedding"]) == 384 for row in answer["data"])


def test_an_alias_is_answered_with_the_cards_own_name(http: httpx.Client) -> None:
    assert post(http, model="text-embedding-ada-002").json()["model"] == MATRYOSHKA


def pinning(http: httpx.Client, *values: str, **fields: Any) -> httpx.Response:
    """The answer to a request with these values of the header that pins a fingerprint."""
    body = {"model": PLAIN, "input": "x", **fields}
    headers = [(EXPECT_FINGERPRINT.encode(), value.encode("latin-1")) for value in values]
    return http.post("/v1/embeddings", json=body, headers=headers)


def test_the_pinned_fingerprint_may_have_capital_letters(
    http: httpx.Client, plain_card: Card
) -> None:
    for pin in (plain_card.fingerprint, plain_card.fingerprint.upper()):
        response = pinning(http, pin)
        assert response.headers["x-embedding-fingerprint"] == plain_card.fingerprint
        assert rows(response) == rows(post(http))


def test_the_pinned_fingerprint_may_have_blanks_around_it(
    server: ServerProcess, plain_card: Card
) -> None:
    request = urllib.request.Request(  # httpx would not send them
        f"{server.base_url}/embeddings",
        json.dumps({"model": PLAIN, "input": "x"}).encode(),
        {EXPECT_FINGERPRINT: f"  {plain_card.fingerprint}\t \xa0"},
    )
    with urllib.request.urlopen(request) as response:
        assert response.status == 200


def test_another_fingerprint_is_refused_before_the_text_is_read(
    http: httpx.Client, plain_card: Card, matryoshka_card: Card
) -> None:
    mine, other = plain_card.fingerprint, matryoshka_card.fingerprint
    for fields in ({}, {"input": "too long " * 999}, {"dimensions": 7}):
        error = refusal(pinning(http, other, **fields))
        assert error["code"] == "embedding_fingerprint_mismatch"
        assert error["param"] == EXPECT_FINGERPRINT
        assert all(named in error["message"] for named in (mine, other, PLAIN))
    aliased = pinning(http, mine, model="text-embedding-3-small")
    assert refusal(aliased)["code"] == "embedding_fingerprint_mismatch"
    assert MATRYOSHKA in refusal(aliased)["message"]
    assert refusal(pinning(http, other, model="gpt-5"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    "values",
    [
        [""],
        ["abc"],
        ["0" * 15],
        ["0" * 17],
        ["g" * 16],
        ["é" * 16],
        ["0" * 9000],
        ["00000000 0000000"],
        ["0" * 16, "1" * 16],
    ],
    ids=lambda values: values[0][:17],
)
def test_what_is_no_fingerprint_is_refused_as_such(
    http: httpx.Client, plain_card: Card, values: list[str]
) -> None:
    error = refusal(pinning(http, *values))
    assert error["message"].startswith(f"{EXPECT_FINGERPRINT} must be 16 hex digits, not ")
    assert plain_card.fingerprint in error["message"]
    assert len(error["message"]) < 400
    assert error["param"] == EXPECT_FINGERPRINT
    assert error["code"] is None


def test_null_means_the_default_for_every_optional_field(http: httpx.Client) -> None:
    optional = ["dimensions", "encoding_format", "user", "safety_identifier", "truncate"]
    response = post(http, **dict.fromkeys([*optional, "input_type"]))
    assert isinstance(rows(response)[0], list)


def test_base64_is_bit_for_bit_the_float_answer(http: httpx.Client) -> None:
    texts = ["one", "two words", "three little words"]
    for fields in ({"model": PLAIN}, {"model": MATRYOSHKA, "dimensions": 7}):
        encoded = rows(post(http, input=texts, encoding_format="base64", **fields))
        floats = rows(post(http, input=texts, encoding_format="float", **fields))
        for as_text, numbers in zip(encoded, floats, strict=True):
            assert isinstance(as_text, str)
            decoded = base64.b64decode(as_text, validate=True)
            assert decoded == np.array(numbers, "<f4").tobytes()


def test_all_four_input_forms_agree(http: httpx.Client) -> None:
    ids = [9906, 11, 1917]  # cl100k_base for "Hello, world"
    forms: list[Any] = ["Hello, world", ["Hello, world"], ids, [ids]]
    answers = [post(http, input=form) for form in forms]
    for answer in answers[1:]:
        np.testing.assert_allclose(rows(answer)[0], rows(answers[0])[0], atol=1e-6)
        assert answer.json()["usage"] == answers[0].json()["usage"]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("", "input must not be an empty string"),
        ([], "input must not be an empty list"),
        (["a", ""], "input[1] must not be an empty string"),
        ([[1], []], "input[1] must not be an empty list"),
        (["a", 1], "input[1] must be a string like the inputs before it, not an integer"),
        (["a", None], "input[1] must be a string like the inputs before it, not null"),
        ([1, "a"], "input[1] must be a token id (an integer), not a string"),
        ([1, True], "input[1] must be a token id (an integer), not a boolean"),
        ([1, 2.0], "input[1] must be a token id (an integer), not a number"),
        ([1, -1], "input[1] must be a token id of at least 0"),
        ([[1], "a"], "input[1] must be a list of token ids like the inputs before it"),
        ([[1], [2, "a"]], "input[1][1] must be a token id (an integer), not a string"),
        ([True], "input[0] must be a string, a list of token ids, or a token id, not a boolean"),
        ([[1], [100256]], "input[1][0]: token id 100256 is not in OpenAI's cl100k_base"),
        (None, "input must be a string, a list of strings, or lists of token ids, not null"),
        ({"text": "a"}, "not an object"),
        (["x"] * 2049, "input holds 2049 inputs, more than the 2048 allowed"),
    ],
)
def test_a_wrong_input_is_named_with_its_position(
    http: httpx.Client, value: Any, complaint: str
) -> None:
    error = refusal(post(http, input=value))
    assert complaint in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "input"


def test_2048_inputs_are_allowed(http: httpx.Client) -> None:
    assert len(rows(post(http, input=["x"] * 2048))) == 2048


@pytest.mark.parametrize(
    ("fields", "param", "complaint"),
    [
        ({"model": None}, "model", "model must be a valid string"),
        ({"model": 3}, "model", "model must be a valid string"),
        ({"dimensions": 64}, "dimensions", "does not support specifying dimensions"),
        ({"model": MATRYOSHKA, "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"model": MATRYOSHKA, "dimensions": 385}, "dimensions", "not between 1 and 384"),
        ({"model": MATRYOSHKA, "dimensions": 64.0}, "dimensions", "valid integer"),
        ({"model": MATRYOSHKA, "dimensions": True}, "dimensions", "valid integer"),
        ({"model": MATRYOSHKA, "dimensions": "64"}, "dimensions", "valid integer"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"user": 3}, "user", "valid string"),
        ({"truncate": "yes"}, "truncate", "valid boolean"),
        ({"input_type": "image"}, "input_type", "one of 'query', 'document', 'classification'"),
        ({"input_type": ""}, "input_type", f"for the model '{PLAIN}', not ''."),
        ({"input_type": 3}, "input_type", "valid string"),
        ({"temperature": 1}, "temperature", "Unrecognized request argument supplied: temperature"),
        ({"a": 1, "b": 2}, "a", "Unrecognized request arguments supplied: a, b"),
    ],
)
def test_a_wrong_field_is_named(
    http: httpx.Client, fields: dict[str, Any], param: str, complaint: str
) -> None:
    error = refusal(post(http, **fields))
    assert error["param"] == param
    assert complaint in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_million_unknown_fields_are_one_refusal(
    http: httpx.Client, server: ServerProcess
) -> None:
    before = server.resident_bytes()
    body = {"model": PLAIN, "input": "", **{f"field{n}": n for n in range(300_000)}}
    error = refusal(http.post("/v1/embeddings", json=body))
    assert error["message"] == "Unrecognized request argument supplied: field0"
    assert server.resident_bytes() - before < 300e6  # an error object a field took 1 GB


@pytest.mark.parametrize("missing", ["model", "input"])
def test_a_missing_field_is_named(http: httpx.Client, missing: str) -> None:
    body = {"model": PLAIN, "input": "x"}
    del body[missing]
    error = refusal(http.post("/v1/embeddings", json=body))
    assert error["message"] == f"Missing required parameter: '{missing}'."
    assert error["param"] == missing


def test_an_unknown_model_is_not_found(http: httpx.Client) -> None:
    error = refusal(post(http, model="text-embedding-4"), status=404)
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert PLAIN in error["message"]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model": "\xff", "input": "x"}', "not valid UTF-8: byte 11 is 0xff"),
        (b'{"model": "m", "input": "\\ud800"}', "not valid JSON"),
        (b'{"model": "m", "input": NaN}', "not valid JSON"),
        (b"[" * 10_000, "not valid JSON"),
        (b'{"input": ' + b"[" * 100_000, "not valid JSON"),
        (b"[]", "must be a JSON object, not a list"),
        (b'"text"', "must be a JSON object, not a string"),
        (b"null", "must be a JSON object, not null"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(
    http: httpx.Client, body: bytes, complaint: str
) -> None:
    error = refusal(http.post("/v1/embeddings", content=body))
    assert complaint in error["message"]
    assert error["type"] == "invalid_request_error"


def test_over_long_input_is_refused_with_its_length_and_position(http: httpx.Client) -> None:
    error = refusal(post(http, input=["x", "hello " * 810]))
    assert error["message"].startswith(
        "This model's maximum context length is 256 tokens, however you requested 812 tokens "
        "(input[1])"
    )
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "input"


def test_truncate_cuts_and_counts_what_was_read(http: httpx.Client) -> None:
    long, cut = "hello " * 810, "hello " * 254
    response = post(http, input=[long, cut], truncate=True)
    first, second = rows(response)
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert response.json()["usage"]["prompt_tokens"] == 512


def test_more_than_300000_tokens_are_refused(http: httpx.Client) -> None:
    error = refusal(post(http, input=["hello " * 250] * 1300))
    assert error["code"] == "max_tokens_per_request"
    assert error["param"] == "input"
    error = refusal(post(http, input=[[9906] * 8191] * 37))
    assert error["code"] == "max_tokens_per_request"


def test_token_ids_that_are_cut_count_after_the_cut(http: httpx.Client) -> None:
    ids = [[1917] * 8191] * 37  # " world", more than 300,000 times before the cut
    response = post(http, input=ids, truncate=True)
    assert response.json()["usage"]["prompt_tokens"] == 37 * 256
    assert refusal(post(http, input=ids * 4, truncate=True))["code"] == "max_tokens_per_request"


def test_a_body_of_32_mib_is_read(http: httpx.Client) -> None:
    frame = json.dumps({"model": PLAIN, "input": ""})
    text = "word " * ((32 * 1024 * 1024 - len(frame)) // 5)
    error = refusal(http.post("/v1/embeddings", content=frame.replace('""', f'"{text}"')))
    assert error["code"] == "max_tokens_per_request"


def test_a_larger_body_is_413_whether_its_length_is_declared_or_not(http: httpx.Client) -> None:
    block = b" " * (1 << 20)
    for content in (block * 33, iter([block] * 33)):
        error = refusal(http.post("/v1/embeddings", content=content), status=413)
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "body_too_large"
    assert post(http).status_code == 200  # the connection goes on


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
plausible = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from([PLAIN, MATRYOSHKA, "text-embedding-3-small"]) | json_values,
        "input": st.text(max_size=60)
        | st.lists(st.text(max_size=60), max_size=6)
        | st.lists(st.integers(0, 110_000), max_size=6)
        | st.lists(st.lists(st.integers(0, 100_255), max_size=6), max_size=6)
        | json_values,
        "dimensions": st.integers(-2, 400) | json_values,
        "encoding_format": st.sampled_from(["float", "base64"]) | json_values,
        "user": st.text(max_size=9) | json_values,
        "truncate": st.booleans() | json_values,
        "input_type": st.sampled_from(["query", "passage", "STS"]) | st.text() | json_values,
        "extra": json_values,
    },
)
valid = st.fixed_dictionaries(
    {
        "model": st.sampled_from([PLAIN, MATRYOSHKA]),
        "input": st.text(min_size=1, max_size=80)
        | st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=6)
        | st.lists(st.integers(0, 100_255), min_size=1, max_size=9)
        | st.lists(
            st.lists(st.integers(0, 100_255), min_size=1, max_size=9), min_size=1, max_size=6
        ),
    },
    optional={
        "encoding_format": st.sampled_from(["float", "base64", None]),
        "truncate": st.booleans(),
        "input_type": st.sampled_from(["query", "document", "RETRIEVAL_QUERY", "clustering"]),
    },
)


def check_any_answer(body: Any, response: httpx.Response) -> None:
    """200 with as many vectors as inputs, or a refusal in the one shape; never a 5xx."""
    if response.status_code != 200:
        refusal(response, status=404 if response.status_code == 404 else 400)
        return
    answer = response.json()
    wanted = body["input"]
    count = 1 if isinstance(wanted, str) or isinstance(wanted[0], int) else len(wanted)
    assert [row["index"] for row in answer["data"]] == list(range(count))
    for row in answer["data"]:
        vector = row["embedding"]
        if body.get("encoding_format") == "base64":
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        assert len(vector) == (body.get("dimensions") or 384)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] >= 2 * count


@given(plausible | json_values)
def test_any_json_body_gets_vectors_or_a_refusal(http: httpx.Client, body: Any) -> None:
    content = json.dumps(body).encode()
    check_any_answer(body, http.post("/v1/embeddings", content=content))


@given(valid)
def test_every_valid_body_gets_vectors(http: httpx.Client, body: dict[str, Any]) -> None:
    response = http.post("/v1/embeddings", json=body)
    if response.status_code == 400:  # cl100k ids may decode to very many tokens
        assert response.json()["error"]["code"] == "context_length_exceeded"
    else:
        assert response.status_code == 200
    check_any_answer(body, response)


@given(st.binary(max_size=200))
def test_any_bytes_get_a_refusal(http: httpx.Client, body: bytes) -> None:
    refusal(http.post("/v1/embeddings", content=body))


def test_refused_requests_cost_no_forward_pass(http: httpx.Client, server: ServerProcess) -> None:
    bulk = different_texts(1100, 250)
    cpu_before = cpu_seconds(server)
    refusal(post(http, input=bulk, dimensions=64))
    refusal(post(http, input=bulk, extra=1))
    refusal(post(http, input=[*bulk, ""]))
    # 1,100 texts of 252 tokens would take tens of seconds; reading their JSON takes milliseconds.
    assert cpu_seconds(server) - cpu_before < 5


def cpu_seconds(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_client_that_leaves_takes_its_waiting_work_with_it() -> None:
    with ServerProcess("--model", PLAIN, "--threads", "1") as own:

        def told(name: str) -> float:
            page = MetricsPage(httpx.get(f"{own.url}/metrics").content)
            return page.value(name, model=PLAIN)

        body = json.dumps({"model": PLAIN, "input": different_texts(200, 250)}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        host, port = own.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as leaving:
            leaving.sendall(head.encode() + body)
            wait_for(lambda: told("admitted_tokens") > 40_000, "its tokens")
        # The 50,000 would keep the only thread busy for some seconds more.
        wait_for(lambda: told("admitted_tokens") == 0, "nothing left")
        assert told("computed_tokens_total") < 40_000
        query = httpx.post(own.base_url + "/embeddings", json={"model": PLAIN, "input": "x"})
        assert query.status_code == 200
        assert "Traceback" not in own.log()


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with a copy of the default model that has prompts and reads its own token ids."""
    models = tmp_path_factory.mktemp("models")
    (models / PLAIN).symlink_to(REPOSITORY / "models" / PLAIN)
    (models / "prompted").mkdir()
    (models / "prompted" / "card.toml").write_text(
        f'name = "prompted"\nbase = "{PLAIN}"\ndefault_prompt = "passage"\n'
        'prompts = { query = "query: ", passage = "passage: ", STS = "like: ", "a.b" = "b: " }\n'
    )
    flags = ["--models-dir", str(models), "--model", "prompted", "--model", PLAIN]
    with (
        ServerProcess(*flags, "--model-token-ids", PLAIN, "--truncate-inputs") as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [
        *((name, "query: ") for name in ("query", "search_query", "RETRIEVAL_QUERY")),
        *((name, "passage: ") for name in ("document", "passage", "search_document", None)),
        *((name, "like: ") for name in ("STS", "text-matching", "SEMANTIC_SIMILARITY")),
        *((name, "b: ") for name in ("a.b", "A_B")),
    ],
)
def test_input_type_puts_the_models_prompt_in_front(
    prompted: httpx.Client, input_type: str | None, prompt: str
) -> None:
    with_prompt = post(prompted, model="prompted", input="fox", input_type=input_type)
    by_hand = post(prompted, model=PLAIN, input=f"{prompt}fox")
    np.testing.assert_allclose(rows(with_prompt), rows(by_hand), atol=1e-6)
    assert with_prompt.json()["usage"] == by_hand.json()["usage"]


def test_a_purpose_that_the_model_lacks_is_refused_before_anything_is_tokenised(
    prompted: httpx.Client,
) -> None:
    asked = {"model": "prompted", "input": "long " * 300, "truncate": False}
    error = refusal(post(prompted, **asked, input_type="classification"))
    assert error["param"] == "input_type"
    assert "one of 'query', 'document', 'passage', 'STS', 'a.b' for" in error["message"]
    assert refusal(post(prompted, **asked, input_type="STS"))["param"] == "input"


@pytest.mark.parametrize("input_type", ["query", "passage", "classification", "text-matching"])
def test_a_model_without_prompts_takes_every_purpose_for_the_bare_text(
    prompted: httpx.Client, input_type: str
) -> None:
    named = post(prompted, model=PLAIN, input="fox", input_type=input_type)
    bare = post(prompted, model=PLAIN, input="fox")
    np.testing.assert_allclose(rows(named), rows(bare), atol=1e-6)
    assert named.headers[FINGERPRINT] == bare.headers[FINGERPRINT]


def test_an_answer_has_the_fingerprint_of_what_decided_it_and_can_be_pinned_to_it(
    prompted: httpx.Client,
) -> None:
    def found(input_type: str | None, pin: str = "") -> httpx.Response:
        body = {"model": "prompted", "input": "fox", "input_type": input_type}
        headers = {EXPECT_FINGERPRINT: pin} if pin else {}
        return prompted.post("/v1/embeddings", json=body, headers=headers)

    model = prompted.get("/v1/models/prompted").json()
    assert list(model["prompts"]) == ["query", "passage", "STS", "a.b"]
    of_index = {found(name).headers[FINGERPRINT] for name in (None, "query", "document", "passage")}
    assert of_index == {model["fingerprint"]}
    other = found("STS").headers[FINGERPRINT]
    assert len({model["fingerprint"], other, found("a.b").headers[FINGERPRINT]}) == 3
    assert found("query", pin=model["fingerprint"]).status_code == 200
    assert found("text-matching", pin=other).status_code == 200
    error = refusal(found("STS", pin=model["fingerprint"]))
    assert error["code"] == "embedding_fingerprint_mismatch"
    assert other in error["message"]
    assert model["fingerprint"] in refusal(found(None, pin=other))["message"]


def test_the_prompt_also_stands_before_token_ids(prompted: httpx.Client) -> None:
    as_ids = post(prompted, model="prompted", input=[9906], input_type="query")  # "Hello"
    by_hand = post(prompted, model=PLAIN, input="query: Hello")
    np.testing.assert_allclose(rows(as_ids), rows(by_hand), atol=1e-6)


def test_a_setting_makes_ids_the_models_own(prompted: httpx.Client) -> None:
    own_ids = post(prompted, model=PLAIN, input=[101, 7592, 102])
    as_text = post(prompted, model=PLAIN, input="hello")
    np.testing.assert_allclose(rows(own_ids), rows(as_text), atol=1e-6)
    error = refusal(post(prompted, model=PLAIN, input=[30522]))
    assert "input[0]" in error["message"]
    assert "not in the model's vocabulary" in error["message"]


def test_a_setting_makes_cutting_the_default(prompted: httpx.Client) -> None:
    long = "hello " * 300
    assert post(prompted, model=PLAIN, input=long).json()["usage"]["prompt_tokens"] == 256
    refusal(post(prompted, model=PLAIN, input=long, truncate=False))


async def test_the_native_size_is_accepted_by_a_model_that_cannot_be_cut(
    app_over: AppOver, plain_card: Card
) -> None:
    app = await app_over(FakeBackend())
    body = {"model": PLAIN, "input": ["x", "two words"]}
    async with client_of(app) as client:
        native = plain_card.embedding_dim
        plain = await client.post("/v1/embeddings", json=body)
        named = await client.post("/v1/embeddings", json={**body, "dimensions": native})
        assert plain.status_code == 200
        assert named.json() == plain.json()
        for other in (1, native - 1, native + 1):
            cut = await client.post("/v1/embeddings", json={**body, "dimensions": other})
            assert "does not support specifying dimensions" in refusal(cut)["message"]
