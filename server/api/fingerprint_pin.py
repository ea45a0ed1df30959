"""A request may pin the fingerprint of its vectors: another model's or version's are no use to it."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from server.errors import FingerprintMismatch, InvalidRequest, shortened

FINGERPRINT = "x-embedding-fingerprint"
EXPECT_FINGERPRINT = "x-expect-embedding-fingerprint"
PARAMETER = {
    "name": EXPECT_FINGERPRINT,
    "in": "header",
    "description": "Refuse the request if the model's fingerprint is another one.",
    "schema": {"type": "string", "pattern": "^[0-9a-fA-F]{16}$"},
}  # as OpenAPI describes it


def check_fingerprint(headers: Headers, model: str, fingerprint: str) -> None:
    """Refuse a request that pins a fingerprint, unless it is that of its answer.

    Args:
        model: the name of its card.
        fingerprint: what the answer would have.

    Raises:
        FingerprintMismatch: the answer would have another one.
        InvalidRequest: what is pinned is no fingerprint.
    """
    pinned = headers.getlist(EXPECT_FINGERPRINT)
    if not pinned:
        return
    sent = ", ".join(pinned).strip()
    expected = sent.lower()
    if not re.fullmatch("[0-9a-f]{16}", expected):
        raise InvalidRequest(
            f"{EXPECT_FINGERPRINT} must be 16 hex digits, not {shortened(sent, 40)!r}; the model "
            f"'{model}' has the embedding fingerprint {fingerprint} on this server.",
            param=EXPECT_FINGERPRINT,
        )
    if expected != fingerprint:
        raise FingerprintMismatch(
            EXPECT_FINGERPRINT, model=model, fingerprint=fingerprint, expected=expected
        )
