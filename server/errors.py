"""Every error the server can answer or stop with, declared once.

    EmbeddingServerError
      ApiError                    one HTTP answer in OpenAI's error shape
        InvalidRequest            400  invalid_request_error
          UnrecognizedArgument
          MissingArgument
          ContextLengthExceeded        context_length_exceeded
          TooManyTokens                max_tokens_per_request
          RequestAboveTokenLimit       max_tokens_per_request
          TokenWithoutEmbedding
          FingerprintMismatch          embedding_fingerprint_mismatch
          UntrustedHost                untrusted_host
        AuthenticationFailed      401  authentication_error
          MissingApiKey
          IncorrectApiKey              invalid_api_key
            ApiKeyExpired
            ApiKeyRevoked
        BudgetSpent               402  billing_error, token_budget_spent
        PermissionDenied          403  permission_error
          ScopeMissing                 scope_missing
          ModelNotAllowed              model_not_allowed
        UrlNotFound               404  invalid_request_error, unknown_url
        ModelNotFound             404  invalid_request_error, model_not_found
        MethodNotAllowed          405  invalid_request_error, method_not_allowed
        BodyTooLarge              413  invalid_request_error, body_too_large
        RequestTooLarge           413  invalid_request_error, request_too_large
        UnsupportedContentEncoding  415  invalid_request_error, unsupported_content_encoding
        RateLimitExceeded         429  rate_limit_error, rate_limit_exceeded, with Retry-After
        InferenceFailed           500  internal_server_error
        Unavailable               503  upstream_error, with Retry-After
          ModelLoading                 model_loading
          ModelLoadFailed              model_load_failed
          ModelFailing                 model_failing
          EngineSilent                 engine_silent
          Overloaded                   server_overloaded
          RequestTimedOut              request_timeout
          BodyTooSlow                  body_too_slow
          StorageUnavailable           storage_unavailable
          Draining                     server_draining
      GivenUp                     the command stops with one line and exit code 1
      StartupError                the command stops with one line and exit code 2
        SettingError
        CardError
        ModelFileError
        ModelLoadError
        ImportRefused
          UnknownArithmetic
        SelfTestFailed
        AddressError
        BundleError
        PipError
        DatabaseError
          DatabaseGone
          DatabaseEmpty
          DatabaseForeign
          DatabaseReplaced
        TextFileError
        OutputFileError
        RemoteServerError
          RemoteServerRefused
        FitRefused
        MissingExtra
        KeyRefused
          KeyNotFound

Status, type and code live on the class; a message names the field, its position and the value's
length or type, never a whole secret. This module knows nothing of the HTTP framework.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar

from server.program.command_lines import install_command

MAX_RETRY_AFTER_S = 60
_CUT_WORD = re.compile(r"\S*\Z")
_MOST_CHARS = 4000  # of a refused import's line; a folder's files hold values of any length


class EmbeddingServerError(Exception):
    """Base of every error this package raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ApiError(EmbeddingServerError):
    """One answer in OpenAI's error shape; subclasses fix status, type and code."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        """Extra response headers that belong to this error."""
        return {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON object OpenAI's clients parse: always all four keys."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(ApiError):
    """The request violates the wire contract; `param` names the field."""

    status = 400
    type = "invalid_request_error"


class UnrecognizedArgument(InvalidRequest):
    """The body holds fields the contract does not know."""

    def __init__(self, names: list[str]) -> None:
        plural = "s" if len(names) > 1 else ""
        shown = ", ".join(shortened(name, 100) for name in names[:10])
        super().__init__(
            f"Unrecognized request argument{plural} supplied: {shown}",
            param=shortened(names[0], 100),
        )


class MissingArgument(InvalidRequest):
    """A required field is absent."""

    code = "missing_required_parameter"

    def __init__(self, name: str) -> None:
        super().__init__(f"Missing required parameter: '{name}'.", param=name)


class ContextLengthExceeded(InvalidRequest):
    """One input is longer than the model reads, and cutting it was not asked for."""

    code = "context_length_exceeded"

    def __init__(self, *, position: str, num_tokens: int, max_input_tokens: int) -> None:
        self.position = position
        self.num_tokens = num_tokens
        super().__init__(
            f"This model's maximum context length is {max_input_tokens} tokens, however you "
            f"requested {num_tokens} tokens ({position}). Shorten the input, or send "
            '"truncate": true to have it cut.',
            param="input",
        )


class TooManyTokens(InvalidRequest):
    """All inputs of one request together are too long."""

    code = "max_tokens_per_request"

    def __init__(self, *, max_request_tokens: int, position: str) -> None:
        self.position = position
        super().__init__(
            f"Requested more than {max_request_tokens} tokens, the most that all inputs of one "
            f"request may hold together (the limit was reached at {position}). Send several "
            "smaller requests.",
            param="input",
        )


class RequestAboveTokenLimit(InvalidRequest):
    """One request holds more tokens than its key has in a whole minute."""

    code = "max_tokens_per_request"

    def __init__(self, tokens: int, tokens_per_minute: int) -> None:
        super().__init__(
            f"This request has {tokens} tokens, and your key may use {tokens_per_minute} a minute. "
            "Send several smaller requests.",
            param="input",
        )


class TokenWithoutEmbedding(InvalidRequest):
    """An input holds a token that the tokenizer knows and the model's weights do not."""

    def __init__(self, *, row: int, token: str, token_id: int, num_embeddings: int) -> None:
        self.row = row
        self.what = (
            f"holds {shortened(token, 100)!r} (token id {token_id}), which the model's tokenizer knows, but "
            f"not its weights: they end at {num_embeddings - 1}"
        )
        super().__init__(self._message(f"input[{row}]"), param="input")

    def at(self, position: str) -> InvalidRequest:
        """The error that names the input as its request does, which an engine does not know."""
        return InvalidRequest(self._message(position), param="input")

    def _message(self, position: str) -> str:
        return f"{position} {self.what}. Leave it out."


class FingerprintMismatch(InvalidRequest):
    """The client's index was made by other weights, another prompt or the like."""

    code = "embedding_fingerprint_mismatch"

    def __init__(self, header: str, *, model: str, fingerprint: str, expected: str) -> None:
        super().__init__(
            f"The model '{model}' has the embedding fingerprint {fingerprint} on this server, but "
            f"the request expects {expected} ({header}). Vectors of the two do not belong into one "
            "index.",
            param=header,
        )


class UntrustedHost(InvalidRequest):
    """The request names a host for which this server does not answer."""

    code = "untrusted_host"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"This server does not answer for the host {shortened(host, 100)!r}. Whoever runs it can allow it "
            "with --trusted-host."
        )


class AuthenticationFailed(ApiError):
    """The request carries no usable API key."""

    status = 401
    type = "authentication_error"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class MissingApiKey(AuthenticationFailed):
    """No Authorization header, or not of the form `Bearer KEY`."""

    def __init__(self) -> None:
        super().__init__(
            "You didn't provide an API key. Provide it in an Authorization header of the form "
            "'Authorization: Bearer YOUR_KEY'."
        )


class IncorrectApiKey(AuthenticationFailed):
    """A key was sent, but this server does not know it."""

    code = "invalid_api_key"

    why = ""

    def __init__(self, secret: str) -> None:
        # Enough to recognise one's own key by, never enough to use it.
        hint = f"{secret[:3]}***{secret[-4:]}" if len(secret) >= 20 else "***"
        super().__init__(f"Incorrect API key provided: {hint}{self.why}.")


class ApiKeyExpired(IncorrectApiKey):
    """The key was valid until its date."""

    why = " (this key has expired)"


class ApiKeyRevoked(IncorrectApiKey):
    """The key was valid until it was revoked, or until it got another secret."""

    why = " (this key was revoked)"


class BudgetSpent(ApiError):
    """The key has used up its tokens."""

    status = 402
    type = "billing_error"
    code = "token_budget_spent"

    def __init__(self, token_budget: int, tokens: int) -> None:
        super().__init__(
            f"Your key's budget of {token_budget} tokens does not have the {tokens} left that this "
            "request needs. Ask the operator of this server for more."
        )


class PermissionDenied(ApiError):
    """The key is right, but may not do this."""

    status = 403
    type = "permission_error"


class ScopeMissing(PermissionDenied):
    """The key was not made for this."""

    code = "scope_missing"

    def __init__(self, scope: str) -> None:
        super().__init__(f"Your key lacks the scope '{scope}', which this request needs.")


class ModelNotAllowed(PermissionDenied):
    """The key may use other models only."""

    code = "model_not_allowed"

    def __init__(self, model: str) -> None:
        super().__init__(f"Your key may not use the model '{model}'.", param="model")


class UrlNotFound(ApiError):
    """No route has this path."""

    status = 404
    type = "invalid_request_error"
    code = "unknown_url"

    def __init__(self, method: str, path: str, *, right_path: str | None = None) -> None:
        hint = f" Use {right_path[:200]}: a base URL ends with /v1." if right_path else ""
        super().__init__(f"Unknown request URL: {method} {path[:200]}.{hint}")


class ModelNotFound(ApiError):
    """No served model has this name or alias."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, name: str, available: list[str]) -> None:
        super().__init__(
            f"The model '{shortened(name, 200)}' does not exist on this server. It serves: "
            f"{', '.join(available)}.",
            param="model",
        )


class MethodNotAllowed(ApiError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(f"Method {method} is not allowed for {path[:200]}; allowed: {allow}.")
        self.allow = allow

    @property
    def headers(self) -> dict[str, str]:
        return {"Allow": self.allow}


class BodyTooLarge(ApiError):
    """The request body is larger than `max_body_bytes`."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"

    def __init__(self, max_body_bytes: int) -> None:
        super().__init__(f"The request body is larger than this server's {max_body_bytes} bytes.")


class RequestTooLarge(ApiError):
    """The request would take more memory than `max_memory_bytes` leaves for one."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"

    def __init__(self, needed_bytes: int, allowed_bytes: int) -> None:
        super().__init__(
            f"The request would take {needed_bytes} bytes of memory with its answer, more than "
            f"this server's {allowed_bytes}. Send several smaller requests."
        )


class UnsupportedContentEncoding(ApiError):
    """The body is compressed in a way that this server does not read."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"

    def __init__(self, encoding: str, supported: Sequence[str]) -> None:
        self.supported = ", ".join(supported)
        super().__init__(
            f"Unsupported Content-Encoding {shortened(encoding, 100)!r}; supported, one at a time: "
            f"{self.supported}.",
            param="content-encoding",
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept-Encoding": self.supported}


class RateLimitExceeded(ApiError):
    """The key's requests or tokens of this minute are used up; nothing was counted."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, unit: str, limit: int, *, retry_after_s: float) -> None:
        self.retry_after_s = _whole_seconds(retry_after_s)
        super().__init__(
            f"Rate limit reached for {unit}: your key's limit is {limit} a minute. Try again in "
            f"{self.retry_after_s} s."
        )

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class InferenceFailed(ApiError):
    """The model raised or gave a vector that is not finite; safe to retry."""


class Unavailable(ApiError):
    """The server cannot take work right now; `retry_after_s` says when to come back."""

    status = 503
    type = "upstream_error"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = _whole_seconds(retry_after_s)

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class ModelLoading(Unavailable):
    """The models are still being read from disk."""

    code = "model_loading"

    def __init__(self) -> None:
        super().__init__("The server is still loading its models; try again in a moment.")


class ModelLoadFailed(Unavailable):
    """A model that was asked for could not be read from disk; the log has the reason."""

    code = "model_load_failed"

    def __init__(self, model: str, *, retry_after_s: float) -> None:
        super().__init__(
            f"The model '{model}' cannot be loaded at the moment; the operator of this server finds "
            "the reason in its log.",
            retry_after_s=retry_after_s,
        )


class ModelFailing(Unavailable):
    """The model fails on inputs that are known to be good, or no worker is alive."""

    code = "model_failing"

    def __init__(self) -> None:
        super().__init__("The model does not answer at the moment; try again in a few seconds.",
                         retry_after_s=5)  # fmt: skip


class EngineSilent(Unavailable):
    """The process that computes for all front ends does not answer: it is stopped, or hangs."""

    code = "engine_silent"

    def __init__(self) -> None:
        super().__init__("The process that computes does not answer at the moment; try again in a "
                         "few seconds.", retry_after_s=5)  # fmt: skip


class Overloaded(Unavailable):
    """Too much work waits; the request was not begun."""

    code = "server_overloaded"

    def __init__(self, reason: str, *, retry_after_s: float) -> None:
        super().__init__(
            f"The server is overloaded: {reason}. Try again later.", retry_after_s=retry_after_s
        )


class RequestTimedOut(Unavailable):
    """The request was not answered within `request_timeout_s`; what was left of it is dropped."""

    code = "request_timeout"

    def __init__(self, request_timeout_s: float) -> None:
        super().__init__(
            f"The request took longer than this server's limit of {request_timeout_s:g} s.",
            retry_after_s=5,
        )


class BodyTooSlow(Unavailable):
    """The request body comes so slowly that it would hold a place of others."""

    code = "body_too_slow"

    def __init__(self, min_bytes_per_s: int) -> None:
        super().__init__(
            f"The request body came more slowly than {min_bytes_per_s} bytes a second.",
            retry_after_s=5,
        )


class StorageUnavailable(Unavailable):
    """Keys cannot be read; or limits or budgets cannot, and `if_storage_fails` says refuse."""

    code = "storage_unavailable"

    def __init__(self, what: str) -> None:
        super().__init__(f"The server cannot check {what} at the moment.", retry_after_s=5)


class Draining(Unavailable):
    """The server was told to stop and takes no new work."""

    code = "server_draining"

    @property
    def headers(self) -> dict[str, str]:
        # Keep-alive would bring the client back to a server that is about to be gone.
        return {**super().headers, "Connection": "close"}

    def __init__(self) -> None:
        super().__init__("The server is shutting down; send the request again.")


def api_errors(base: type[ApiError] = ApiError) -> list[type[ApiError]]:
    """Every class of answer that there is, `base` first, without those that are not under it."""
    found = [base]
    for error in found:  # grows while it is walked
        found += error.__subclasses__()
    return found


class GivenUp(EmbeddingServerError):
    """What computes has not worked for long: the command prints the message and exits with 1."""


class StartupError(EmbeddingServerError):
    """The server cannot start or go on; the command prints the message and exits with 2."""


class SettingError(StartupError):
    """A setting is unknown, malformed or unsafe."""


class CardError(StartupError):
    """A model card cannot be read or contradicts another."""


class ModelFileError(StartupError):
    """A model file is missing, or its bytes are not those its card vouches for."""


class ModelLoadError(StartupError):
    """The files are right but the model cannot be made ready."""


class ImportRefused(StartupError):
    """A folder cannot become a model that computes what its publisher meant.

    The message is one line, whatever the folder's files hold that it tells.
    """

    def __init__(self, message: str) -> None:
        line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", message)
        super().__init__(line if len(line) <= _MOST_CHARS else f"{line[:_MOST_CHARS]}…")


class UnknownArithmetic(ImportRefused):
    """A config.json says what the witness has no formula for."""


class SelfTestFailed(StartupError):
    """The self-test found something wrong; its lines have told what."""


class AddressError(StartupError):
    """The host and port cannot be listened on."""


class BundleError(StartupError):
    """A bundle cannot be made, is not what it should be, or cannot be installed."""


class PipError(StartupError):
    """pip is absent or failed; the message ends with its own reason."""


class DatabaseError(StartupError):
    """The database of keys and usage is away, cannot be used, or was written by a newer server."""

    state = "away"  # for people who may not know where it is


class DatabaseGone(DatabaseError):
    """Its file is not there any more, or another one since a moment ago."""

    state = "its file is gone"


class DatabaseEmpty(DatabaseError):
    """It holds nothing of this software's any more; somebody may be restoring it."""

    state = "empty"


class DatabaseForeign(DatabaseError):
    """Its file holds other tables than this software's; nothing is written into it."""

    state = "a file of another program"


class DatabaseReplaced(DatabaseError):
    """Another database is in the place of the one that was opened, or an older copy of it."""

    state = "another one"

    def __init__(self, message: str, *, older: bool) -> None:
        super().__init__(message)
        self.older = older


class TextFileError(StartupError):
    """A file of texts cannot be read, or holds what cannot be embedded; names file and line."""


class OutputFileError(StartupError):
    """A file to be written is there already, cannot be written, or cannot be gone on with."""


class RemoteServerError(StartupError):
    """A server that a command asks cannot be reached, or answers what it should not."""


class RemoteServerRefused(RemoteServerError):
    """A server that a command asks answers with an error."""

    def __init__(self, message: str, *, said: str, code: str | None) -> None:
        super().__init__(message)
        self.said = said  # the server's own words
        self.code = code


class FitRefused(StartupError):
    """No rotation can be fitted, or the one that was found does not help."""


class MissingExtra(StartupError):
    """A package that only some commands need is not installed."""

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: {install_command(extra)}"
        )


class KeyRefused(StartupError):
    """A command asks for a key that cannot be."""


class KeyNotFound(KeyRefused):
    """No key has this id or name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no key {name}")


def unusable(subject: str, error: Exception) -> str:
    """The line that says why a file or folder cannot be used; a missing one is called missing.

    Args:
        subject: what it is, and its path.
    """
    if isinstance(error, FileNotFoundError):
        return f"{subject} does not exist"
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{subject}: {reason or error}"


def shortened(text: str, most: int) -> str:
    """At most about so many characters of a client's text.

    A word that would be cut goes as a whole: the begin of a key is known as none (see `concealing`).
    """
    return text if len(text) <= most else _CUT_WORD.sub("", text[:most]) + "…"


def first_line(error: BaseException, *, unsaid: str | None = None) -> str:
    """What a foreign error says, in one line: libraries explain themselves on pages.

    Args:
        unsaid: stands for an error without words; its type's name if None.
    """
    lines = str(error).strip().splitlines()
    if lines:
        goes_on = lines[0].endswith(":") and len(lines) > 1
        return f"{lines[0]} {lines[1].strip()}" if goes_on else lines[0]
    return type(error).__name__ if unsaid is None else unsaid


def _whole_seconds(seconds: float) -> int:
    return min(max(math.ceil(seconds), 1), MAX_RETRY_AFTER_S)
