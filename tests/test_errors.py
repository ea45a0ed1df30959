from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import server
from server import errors
from server.errors import (
    ApiError,
    ApiKeyExpired,
    ApiKeyRevoked,
    AuthenticationFailed,
    BodyTooLarge,
    BodyTooSlow,
    BudgetSpent,
    ContextLengthExceeded,
    Draining,
    EmbeddingServerError,
    EngineSilent,
    FingerprintMismatch,
    IncorrectApiKey,
    InferenceFailed,
    InvalidRequest,
    MethodNotAllowed,
    MissingApiKey,
    MissingArgument,
    ModelFailing,
    ModelLoadFailed,
    ModelLoading,
    ModelNotAllowed,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RateLimitExceeded,
    RequestAboveTokenLimit,
    RequestTimedOut,
    RequestTooLarge,
    ScopeMissing,
    StartupError,
    StorageUnavailable,
    TokenWithoutEmbedding,
    TooManyTokens,
    Unavailable,
    UnrecognizedArgument,
    UnsupportedContentEncoding,
    UntrustedHost,
    UrlNotFound,
    first_line,
)

# The wire contract: the OpenAI type that belongs to each status this server answers with.
CONTRACT = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "upstream_error",
}

# One example of every answer, with its status, code and the field it names.
EXAMPLES: dict[
    type[ApiError], tuple[Callable[[], ApiError], tuple[int, str | None, str | None]]
] = {
    ApiError: (lambda: ApiError("m"), (500, None, None)),
    InvalidRequest: (lambda: InvalidRequest("m", param="input"), (400, None, "input")),
    UnrecognizedArgument: (lambda: UnrecognizedArgument(["inptu"]), (400, None, "inptu")),
    MissingArgument: (
        lambda: MissingArgument("model"),
        (400, "missing_required_parameter", "model"),
    ),
    ContextLengthExceeded: (
        lambda: ContextLengthExceeded(position="input[3]", num_tokens=812, max_input_tokens=256),
        (400, "context_length_exceeded", "input"),
    ),
    TooManyTokens: (
        lambda: TooManyTokens(max_request_tokens=300_000, position="input[7]"),
        (400, "max_tokens_per_request", "input"),
    ),
    FingerprintMismatch: (
        lambda: FingerprintMismatch("x-h", model="tiny", fingerprint="a" * 16, expected="b" * 16),
        (400, "embedding_fingerprint_mismatch", "x-h"),
    ),
    AuthenticationFailed: (lambda: AuthenticationFailed("m"), (401, None, None)),
    MissingApiKey: (MissingApiKey, (401, None, None)),
    IncorrectApiKey: (lambda: IncorrectApiKey("sk-wrong"), (401, "invalid_api_key", None)),
    ApiKeyExpired: (lambda: ApiKeyExpired("sk-old"), (401, "invalid_api_key", None)),
    ApiKeyRevoked: (lambda: ApiKeyRevoked("sk-old"), (401, "invalid_api_key", None)),
    BudgetSpent: (lambda: BudgetSpent(1000, 12), (402, "token_budget_spent", None)),
    PermissionDenied: (lambda: PermissionDenied("m"), (403, None, None)),
    ScopeMissing: (lambda: ScopeMissing("admin"), (403, "scope_missing", None)),
    ModelNotAllowed: (lambda: ModelNotAllowed("m"), (403, "model_not_allowed", "model")),
    RateLimitExceeded: (
        lambda: RateLimitExceeded("tokens", 1000, retry_after_s=12.3),
        (429, "rate_limit_exceeded", None),
    ),
    RequestAboveTokenLimit: (
        lambda: RequestAboveTokenLimit(2000, 1000),
        (400, "max_tokens_per_request", "input"),
    ),
    TokenWithoutEmbedding: (
        lambda: TokenWithoutEmbedding(row=3, token="[NEW]", token_id=9, num_embeddings=9),
        (400, None, "input"),
    ),
    StorageUnavailable: (
        lambda: StorageUnavailable("budgets"),
        (503, "storage_unavailable", None),
    ),
    UrlNotFound: (lambda: UrlNotFound("GET", "/v2"), (404, "unknown_url", None)),
    ModelNotFound: (lambda: ModelNotFound("gpt-5", ["tiny"]), (404, "model_not_found", "model")),
    MethodNotAllowed: (
        lambda: MethodNotAllowed("GET", "/v1/embeddings", "POST"),
        (405, "method_not_allowed", None),
    ),
    BodyTooLarge: (lambda: BodyTooLarge(1024), (413, "body_too_large", None)),
    RequestTooLarge: (lambda: RequestTooLarge(2048, 1024), (413, "request_too_large", None)),
    BodyTooSlow: (lambda: BodyTooSlow(1024), (503, "body_too_slow", None)),
    UntrustedHost: (lambda: UntrustedHost("evil.example"), (400, "untrusted_host", None)),
    UnsupportedContentEncoding: (
        lambda: UnsupportedContentEncoding("br", ("gzip", "identity")),
        (415, "unsupported_content_encoding", "content-encoding"),
    ),
    InferenceFailed: (lambda: InferenceFailed("m"), (500, None, None)),
    Unavailable: (lambda: Unavailable("m"), (503, None, None)),
    ModelLoading: (ModelLoading, (503, "model_loading", None)),
    ModelLoadFailed: (
        lambda: ModelLoadFailed("tiny", retry_after_s=5),
        (503, "model_load_failed", None),
    ),
    ModelFailing: (ModelFailing, (503, "model_failing", None)),
    EngineSilent: (EngineSilent, (503, "engine_silent", None)),
    Overloaded: (
        lambda: Overloaded("too much waits", retry_after_s=3),
        (503, "server_overloaded", None),
    ),
    RequestTimedOut: (lambda: RequestTimedOut(300.0), (503, "request_timeout", None)),
    Draining: (Draining, (503, "server_draining", None)),
}

every_answer = pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)


def tree(root: type[EmbeddingServerError]) -> set[type[EmbeddingServerError]]:
    """`root` and all classes below it that the package declares."""
    below = (tree(child) for child in root.__subclasses__() if child.__module__[:7] == "server.")
    return {root}.union(*below)


@pytest.fixture(scope="module")
def whole_package() -> None:
    for module in pkgutil.walk_packages(server.__path__, "server."):
        if not module.name.endswith(".__main__"):  # those run commands
            importlib.import_module(module.name)


@pytest.mark.usefixtures("whole_package")
@pytest.mark.torch
def test_every_answer_the_package_can_give_is_covered_by_these_tests() -> None:
    assert tree(ApiError) == set(EXAMPLES)


@every_answer
def test_an_answer_has_the_status_code_and_field_of_the_contract(kind: type[ApiError]) -> None:
    make, (status, code, param) = EXAMPLES[kind]
    error = make()
    assert (error.status, error.code, error.param) == (status, code, param)


@every_answer
def test_an_answer_has_the_type_that_the_contract_gives_its_status(kind: type[ApiError]) -> None:
    assert kind.type == CONTRACT[kind.status]


def test_every_status_of_the_contract_has_an_answer() -> None:
    assert {kind.status for kind in EXAMPLES} == set(CONTRACT)


@every_answer
def test_a_body_always_has_the_four_keys(kind: type[ApiError]) -> None:
    error = EXAMPLES[kind][0]()
    assert json.loads(json.dumps(error.body())) == {
        "error": {
            "message": error.message,
            "type": kind.type,
            "param": error.param,
            "code": kind.code,
        }
    }
    assert error.message
    assert str(error) == error.message


@every_answer
def test_retry_after_comes_with_429_and_503_alone_in_whole_seconds_up_to_a_minute(
    kind: type[ApiError],
) -> None:
    headers = EXAMPLES[kind][0]().headers
    assert ("Retry-After" in headers) == (kind.status in (429, 503))
    assert 1 <= int(headers.get("Retry-After", "1")) <= 60


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_a_client_is_told_to_wait_long_enough_but_at_most_a_minute(seconds: float) -> None:
    told = int(Overloaded("too much waits", retry_after_s=seconds).headers["Retry-After"])
    assert told >= min(seconds, 60)
    assert 1 <= told <= 60
    assert told == 1 or told < seconds + 1


@every_answer
def test_401_names_the_scheme(kind: type[ApiError]) -> None:
    headers = EXAMPLES[kind][0]().headers
    assert headers.get("WWW-Authenticate") == ("Bearer" if kind.status == 401 else None)


def test_405_names_the_methods_that_are_allowed() -> None:
    error = MethodNotAllowed("PUT", "/v1/models", "GET, HEAD")
    assert error.headers == {"Allow": "GET, HEAD"}
    assert "GET, HEAD" in error.message


def test_a_draining_server_sends_its_clients_away() -> None:
    assert Draining().headers["Connection"] == "close"


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF), min_size=1))
def test_a_wrong_key_is_recognised_by_its_owner_and_useless_to_others(secret: str) -> None:
    message = IncorrectApiKey(secret).message
    prefix, _, hint = message.partition(": ")
    assert prefix == "Incorrect API key provided"  # litellm looks for it
    shown = hint.removesuffix(".").split("***")
    assert len(shown) == 2 or "***" in secret
    assert secret not in hint or not secret.strip("*.")
    assert sum(map(len, shown)) <= 7


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF), min_size=1, max_size=19))
def test_of_a_short_wrong_key_nothing_is_shown(secret: str) -> None:
    assert IncorrectApiKey(secret).message == "Incorrect API key provided: ***."


def test_of_a_long_wrong_key_beginning_and_end_are_shown() -> None:
    assert IncorrectApiKey("sk-0123456789abcdefghij").message == (
        "Incorrect API key provided: sk-***ghij."
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["inptu"], "Unrecognized request argument supplied: inptu"),
        (["a", "b"], "Unrecognized request arguments supplied: a, b"),
    ],
)
def test_unknown_fields_are_named(names: list[str], message: str) -> None:
    assert UnrecognizedArgument(names).message == message


@pytest.mark.parametrize(
    "error",
    [
        UnrecognizedArgument(["x" * 5_000] * 500),
        UrlNotFound("GET", "/" + "x" * 50_000),
        UrlNotFound("GET", "/", right_path="/" + "x" * 50_000),
        UnsupportedContentEncoding("x" * 50_000, ("gzip", "identity")),
        MethodNotAllowed("GET", "/" + "x" * 50_000, "POST"),
        ModelNotFound("x" * 50_000, ["tiny"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_client_sent_is_echoed_shortened(error: ApiError) -> None:
    assert len(json.dumps(error.body())) < 2_000


def test_an_overlong_input_is_answered_with_both_lengths_and_its_position() -> None:
    error = ContextLengthExceeded(position="input[3]", num_tokens=812, max_input_tokens=256)
    assert error.message.startswith(
        "This model's maximum context length is 256 tokens, however you requested 812 tokens "
        "(input[3])"
    )
    assert "truncate" in error.message


def test_an_unknown_model_is_answered_with_the_models_there_are() -> None:
    error = ModelNotFound("gpt-5", ["tiny", "large"])
    assert error.message == (
        "The model 'gpt-5' does not exist on this server. It serves: tiny, large."
    )


def test_what_stops_the_start_is_no_http_answer() -> None:
    assert {kind.__name__ for kind in tree(StartupError)} == {
        "StartupError",
        "SettingError",
        "CardError",
        "ModelFileError",
        "ModelLoadError",
        "ImportRefused",
        "UnknownArithmetic",
        "SelfTestFailed",
        "AddressError",
        "BundleError",
        "PipError",
        "DatabaseError",
        "DatabaseGone",
        "DatabaseEmpty",
        "DatabaseForeign",
        "DatabaseReplaced",
        "TextFileError",
        "OutputFileError",
        "RemoteServerError",
        "RemoteServerRefused",
        "FitRefused",
        "MissingExtra",
        "KeyRefused",
        "KeyNotFound",
    }
    assert not tree(StartupError) & tree(ApiError)


def declared() -> list[type[EmbeddingServerError]]:
    return [
        member
        for _, member in inspect.getmembers(errors, inspect.isclass)
        if issubclass(member, EmbeddingServerError)
    ]


@pytest.mark.parametrize("kind", declared(), ids=lambda kind: kind.__name__)
def test_the_drawing_of_the_tree_shows_every_error_below_its_parent(
    kind: type[EmbeddingServerError],
) -> None:
    lines = (errors.__doc__ or "").splitlines()
    drawn = {line.split()[0]: len(line) - len(line.lstrip()) for line in lines if line.strip()}
    depth = len(inspect.getmro(kind)) - len(inspect.getmro(EmbeddingServerError))
    assert drawn[kind.__name__] == 4 + 2 * depth


def test_415_names_the_encodings_that_are_read() -> None:
    error = UnsupportedContentEncoding("br", ("gzip", "deflate", "identity"))
    assert error.headers == {"Accept-Encoding": "gzip, deflate, identity"}
    assert "'br'" in error.message
    assert "gzip, deflate, identity" in error.message


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("one", "one"),
        ("one\ntwo\nthree", "one"),
        ("\n\n  one  \r\ntwo", "one  "),
        ("", "RuntimeError"),
        (" \n ", "RuntimeError"),
    ],
)
def test_of_a_foreign_error_one_line_is_said(said: str, line: str) -> None:
    assert first_line(RuntimeError(said)) == line
    assert first_line(RuntimeError(said), unsaid="nothing") == line.replace(
        "RuntimeError", "nothing"
    )


def test_a_refused_import_is_one_line_whatever_it_names() -> None:
    refused = errors.ImportRefused("folder: type a\nb\x1b[2Jc\u2028d")
    assert str(refused) == "folder: type a b [2Jc d"
    assert len(str(errors.ImportRefused("a" * 10**6))) == 4001


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("no\nand why", "no"),
        ("Validation error for field 'a':\n    TypeError: expected int\n more",
         "Validation error for field 'a': TypeError: expected int"),
        ("nothing:", "nothing:"),
    ],
)  # fmt: skip
def test_of_a_foreign_error_the_line_that_says_something_is_told(said: str, told: str) -> None:
    assert errors.first_line(ValueError(said)) == told
