"""API keys where none belongs: found in what a client has sent, so that nothing repeats them.

Pure; knows no HTTP. Any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

CONCEALED = "***"
# What is shorter could be any word; it is a key only where it stands alone.
_LEAST_CHARS = 8
# The form of keys that this server makes, and OpenAI too: also those of other servers.
_OF_KEYS_FORM = re.compile(r"sk-[A-Za-z0-9_-]{20,}", re.ASCII)
# Keys of other forms that a database holds have 16 characters and more, and only digests tell them.
_RUN = re.compile(r"[A-Za-z0-9_-]{16,}", re.ASCII)


def sent_secrets(authorization: str | None) -> list[str]:
    """What an Authorization header holds that may be a secret, whatever its form."""
    words = (authorization or "").split()
    return words[1:] if len(words) > 1 else words


def conceal(text: str, secrets: Iterable[str], is_key: Callable[[str], bool] | None) -> str:
    """The text without the keys in it.

    Args:
        secrets: keys that are known in clear.
        is_key: whether a word is another key; None: there is no other.
    """
    for secret in (form for one in secrets for form in {one, one.lower()}):  # as hosts are told
        if len(secret) >= _LEAST_CHARS or text == secret:
            text = text.replace(secret, CONCEALED)
    if "sk-" in text:
        text = _OF_KEYS_FORM.sub(CONCEALED, text)
    if is_key is None:
        return text
    if text.isascii() and " " not in text and is_key(text):
        return CONCEALED
    return _RUN.sub(lambda found: CONCEALED if is_key(found[0]) else found[0], text)
