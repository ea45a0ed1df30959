"""A client of POST /v1/embeddings, of this software's servers and of others with OpenAI's API.

One request at a time. Follows no redirect, so that a key goes to the host that was named and to no
other. Knows no files of texts. Not to be shared between threads.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import Any, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import numpy as np
import orjson
from numpy.typing import NDArray

from server import __version__
from server.errors import (
    MAX_RETRY_AFTER_S,
    RemoteServerError,
    RemoteServerRefused,
    first_line,
    shortened,
)
from server.settings import is_loopback

# Longer than a server of ours lets a request take, so that its own 503 comes before.
TIMEOUT_S = 330
# Seconds that one request may be sent away for in all: some minutes of a limit that others share.
MAX_WAIT_S = 600
MAX_READ_S = 600  # any answer's body: a byte now and then must not hold the command for ever
MAX_ANSWER_BYTES = (
    256 * 1024 * 1024
)  # 256 vectors of MAX_ANSWER_DIMENSIONS numbers, written as decimals
MAX_ANSWER_DIMENSIONS = 16_384  # more would let one answer ask this machine for all of its memory
_PART_BYTES = 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_MAX_TOLD_CHARS = 300
_LATER = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    vectors: NDArray[np.float32]  # (inputs, dimensions)
    model: str | None
    tokens: int  # 0: not told
    fingerprint: str | None


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # the answer is then an error like any other


class EmbeddingsClient:
    """Asks one server.

    Args:
        base_url: with the path up to `/v1`; http or https.
        key: sent as a bearer token; None: no key.
    """

    def __init__(self, base_url: str, key: str | None = None) -> None:
        self._url = f"{base_url}/embeddings"
        self._key = key
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": f"embedding-server/{__version__}",
        }
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        # No proxy that the environment names stands between a machine and itself.
        host = urlsplit(base_url).hostname or ""
        local = host == "localhost" or is_loopback(host)
        self._opener = build_opener(_NoRedirects, *([ProxyHandler({})] if local else []))

    def embed(self, texts: Sequence[str], **fields: object) -> Answer:
        """The vectors of some texts, asked for as base64; waits as the server says if it is busy.

        Args:
            fields: of the request, beside `input` and `encoding_format`.

        Raises:
            RemoteServerRefused: the server answers with an error.
            RemoteServerError: it cannot be reached, or answers what it should not.
        """
        body = orjson.dumps({"input": list(texts), "encoding_format": "base64", **fields})
        content, headers = self._post(body)
        try:
            answer = orjson.loads(content)
            rows = [(row["embedding"], row.get("index")) for row in answer["data"]]
            model, usage = answer.get("model"), answer.get("usage")
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            raise self._error("the answer is no list of embeddings") from None
        if len(rows) != len(texts):
            raise self._error(f"{len(rows)} vectors came for {len(texts)} texts")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        fingerprint = headers.get("x-embedding-fingerprint")
        return Answer(
            vectors=self._matrix(self._in_order(rows)),
            model=self._printable(model) if isinstance(model, str) else None,
            tokens=tokens if isinstance(tokens, int) else 0,
            fingerprint=None if fingerprint is None else self._printable(fingerprint),
        )

    def _in_order(self, rows: Sequence[tuple[object, object]]) -> list[object]:
        """Embeddings as their `index` says, if they have one: nothing else says whose they are."""
        numbers = [index for _, index in rows]
        if all(index is None for index in numbers):
            return [embedding for embedding, _ in rows]
        by_index = {index: embedding for embedding, index in rows if type(index) is int}
        if by_index.keys() != set(range(len(rows))):
            raise self._error(f"the embeddings' indexes are not those from 0 to {len(rows) - 1}")
        return [by_index[place] for place in range(len(rows))]

    def _matrix(self, rows: Sequence[object]) -> NDArray[np.float32]:
        vectors = [self._vector(row) for row in rows]
        sizes = sorted({len(vector) for vector in vectors})
        if len(sizes) != 1 or not sizes[0]:
            raise self._error(f"vectors of {' and '.join(map(str, sizes))} dimensions came")
        if sizes[0] > MAX_ANSWER_DIMENSIONS:
            raise self._error(
                f"vectors of {sizes[0]} dimensions came, more than {MAX_ANSWER_DIMENSIONS}"
            )
        return np.stack(vectors)

    def _vector(self, row: object) -> NDArray[np.float32]:
        """Of base64, or of the list of numbers that servers answer which know no base64."""
        try:
            if isinstance(row, str):
                return np.frombuffer(base64.b64decode(row, validate=True), "<f4")
            with np.errstate(over="ignore"):  # infinity, which the caller names with its text
                vector = np.asarray(row, np.float32)
        except (binascii.Error, ValueError, TypeError):
            raise self._error("an embedding is neither base64 of float32 nor a list") from None
        if vector.ndim != 1:
            raise self._error("an embedding is neither base64 of float32 nor a list")
        return vector

    def _post(self, body: bytes) -> tuple[bytes, Message]:
        request = Request(self._url, body, self._headers, method="POST")
        waited_s = 0
        for attempt in itertools.count():
            try:
                with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                    return self._read(answer, MAX_ANSWER_BYTES), answer.headers
            except HTTPError as error:
                with error:
                    wait_s = _wait_s(error.headers.get("Retry-After"), attempt)
                    if error.code not in _LATER or waited_s + wait_s > MAX_WAIT_S:
                        raise self._refused(error) from None
                waited_s += wait_s
            except (OSError, HTTPException, ValueError) as error:  # ValueError: no name of a host
                reason = getattr(error, "reason", None) or error
                raise self._error(first_line(_cause(reason))) from error
            time.sleep(wait_s)
        raise AssertionError  # the count has no end

    def _read(self, answer: HTTPResponse, most_bytes: int) -> bytes:
        content = bytearray()
        until_s = time.monotonic() + MAX_READ_S
        while part := answer.read1(_PART_BYTES):
            content += part
            if len(content) > most_bytes:
                raise self._error(f"the answer has more than {most_bytes} bytes")
            if time.monotonic() > until_s:
                raise self._error(f"the answer takes longer than {MAX_READ_S} s")
        return bytes(content)

    def _refused(self, error: HTTPError) -> RemoteServerRefused:
        """The error of an answer, in OpenAI's shape or another one."""
        said, code = error.reason, None
        try:
            content = self._read(cast("HTTPResponse", error.fp), _MAX_ERROR_BYTES)
            told = orjson.loads(content)["error"]
            said, code = str(told["message"]), told.get("code")
        except (
            OSError, HTTPException, RemoteServerError, orjson.JSONDecodeError, KeyError, TypeError,
        ):  # fmt: skip
            pass  # its status is told
        said = self._printable(said)
        message = f"{self._url} answers {error.code}: {said}"
        return RemoteServerRefused(message, said=said, code=code if isinstance(code, str) else None)

    def _printable(self, text: str) -> str:
        """One short line that steers no terminal, and without the key, if a server sends it back."""
        if self._key is not None:
            text = text.replace(self._key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return shortened(line, _MAX_TOLD_CHARS)

    def _error(self, what: str) -> RemoteServerError:
        return RemoteServerError(f"{self._url}: {self._printable(what)}")


def _cause(reason: object) -> BaseException:
    return reason if isinstance(reason, BaseException) else OSError(str(reason))


def _wait_s(retry_after: str | None, attempt: int) -> int:
    """What the server asks for, in whole seconds; twice as long each time if it says no number."""
    if retry_after is not None and retry_after.isascii() and retry_after.isdecimal():
        return max(1, int(retry_after[:9]))
    return min(1 << min(attempt, 6), MAX_RETRY_AFTER_S)
