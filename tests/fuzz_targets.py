"""What `scripts/prove/fuzz.py` throws bytes at, and what must hold whatever they are.

Each target is a function of bytes that returns in milliseconds; whatever it raises is a finding. Only the standard library reads JSON, TOML and tar a second way here.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from scripts.prove.bodies import BODIES, body_of
from server.api.reading import Reading
from server.api.schemas import EmbeddingRequest
from server.catalog.card import CARD_FILE, FilePin
from server.catalog.card_file import read_card, write_card
from server.delivery.bundle_format import MANIFEST, Manifest, header, padding
from server.delivery.bundle_reader import BundleReader
from server.errors import ApiError, BundleError, CardError
from tests.catalog import FILES, bundle_bytes, card_table, variant_table
from tests.catalog import write_card as write_table
from tests.fuzz_connection import OFFER, PLAIN, try_connection

_MOST_TOKENS = 3000
_SCRATCH = tempfile.TemporaryDirectory()
_MODELS = Path(_SCRATCH.name)
PROMPTS = {"query": "Q: ", "document": "D: "}
_BASE = read_card(write_table(_MODELS, card_table("tiny", prompts=PROMPTS)))


class Target(NamedTuple):
    """One reader of bytes that others send."""

    try_bytes: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]  # what is put into them
    found: tuple[bytes, ...] = ()  # what was wrong once


def try_request(body: bytes) -> None:
    """A request's body means the same looked at first or not, and its inputs are the JSON's."""
    small = _outcome(lambda: EmbeddingRequest.read(body))
    large = _outcome(
        lambda: EmbeddingRequest.of(
            EmbeddingRequest.outline(body, max_request_tokens=_MOST_TOKENS).read()
        )
    )
    # Only a reader of every value sees a number that is too large where nobody wants one.
    assert small == large or (None in (small, large) and _says_a_name_twice(body)), (small, large)
    if small is None:
        return
    found: Any = small.input
    values = found.texts if hasattr(found, "texts") else found.token_ids
    assert json.loads(body.decode("utf-8-sig"))["input"] == (values if found.is_list else values[0])
    with contextlib.suppress(ApiError):
        Reading.of(
            _BASE,
            found,
            input_type=small.input_type,
            truncate=True,
            own_token_ids=len(body) % 2 == 0,
        )


def _outcome(read: Callable[[], EmbeddingRequest]) -> EmbeddingRequest | None:
    """What was read; None if it was refused."""
    try:
        return read()
    except ApiError as error:
        orjson.dumps(error.body())
        refused = error.status
    assert refused == 400
    return None


def _says_a_name_twice(body: bytes) -> bool:
    names: list[str] = []
    json.loads(body, object_pairs_hook=lambda pairs: names.extend(name for name, _ in pairs))
    return len(set(names)) < len(names)


def try_bundle(content: bytes) -> None:
    """A bundle is refused, or holds what tar finds in it. The first byte says what the rest is."""
    kind, content = content[:1], content[1:]
    if kind != b"b":
        if kind == b"c":  # written as it must be, so that what it says is looked at
            with contextlib.suppress(ValueError, RecursionError):
                content = (
                    json.dumps(json.loads(content), indent=1, sort_keys=True) + "\n"
                ).encode()
        content = _with_members(content)
    with tempfile.TemporaryFile(dir=_MODELS) as file:
        file.write(content)
        file.seek(0)
        try:
            found = {
                name: b"".join(chunks)
                for name, chunks in BundleReader(file, Path("x.bundle")).members()
            }
        except BundleError as error:
            refused = error.message
        else:
            refused = ""
    if refused:
        assert refused.isprintable(), refused
        return
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {one.name: archive.extractfile(one) for one in archive}
        unpacked = {name: file.read() if file else None for name, file in files.items()}
    del unpacked[MANIFEST]
    assert unpacked == found


def _with_members(manifest: bytes) -> bytes:
    """A bundle of empty files with this manifest."""
    parts = [header(MANIFEST, len(manifest)), manifest, padding(len(manifest))]
    with contextlib.suppress(ValueError):
        parts += [header(path, 0) for path in Manifest.model_validate_json(manifest).files]
    return b"".join((*parts, bytes(1024)))


def try_card(content: bytes) -> None:
    """A card is refused, or written and read again the same."""
    folder = _MODELS / "tried"
    folder.mkdir(exist_ok=True)
    (folder / CARD_FILE).write_bytes(content)
    try:
        card = read_card(folder, _MODELS)
    except CardError as error:
        error.message.encode()
        return
    known = card.fingerprint, card.encoder_key, card.file_bytes, card.created_unix_s
    write_card(card, folder, _MODELS)
    again = read_card(folder, _MODELS)
    assert again == card
    assert known == (again.fingerprint, again.encoder_key, again.file_bytes, again.created_unix_s)


def _table(table: Mapping[str, Any]) -> bytes:
    return (write_table(_MODELS, table, "seed") / CARD_FILE).read_bytes()


TARGETS: Mapping[str, Target] = {
    "schemas": Target(
        try_request,
        (
            *(body_of(name, 200) for name in BODIES),
            orjson.dumps({"model": "m", "input": ["a", "é😀"], "user": "u", "dimensions": 3}),
            b'\xef\xbb\xbf{"input":[[1,2],[3]],"model":"m","truncate":true,"input_type":"query"}',
            b'{"\\u0069nput":"\\ud83d\\ude00","encoding_format":"base64","model":"m"}',
        ),
        (b'"input":', b'"model":', b'"user":', b'"dimensions":', b"\\ud800", b"null", b"[[", b"1e400"),
    ),
    "protocol": Target(
        try_connection,
        (
            b"\x01" + PLAIN * 2,
            b"\x28" + OFFER + PLAIN,
            b"\x50POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;e=1\r\n{}\r\n0\r\nt: u\r\n\r\n",
            b"\xffHEAD /early HTTP/1.0\r\nExpect: 100-continue\r\n\r\nGET * HTTP/1.1\r\n\r\n",
        ),
        (b"\r\n\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"CONNECT ", b"HEAD ",
         b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"%00", b"PRI * HTTP/2.0"),
        (
            b"PPOST /c HTTP/1.1\r\nHost: x\r\nTransfer-EncodingExpect: 100-continue\r\n\r\n0\r\n\xaf: u\r\n\r\n",
            b"\x01\r\n" + PLAIN,
        ),
    ),
    "bundle": Target(
        try_bundle,
        (
            b"b" + bundle_bytes({}),
            b"b" + bundle_bytes({f"models/tiny/{n}": c for n, c in {**FILES, "card.toml": b"x"}.items()}),
            *(
                kind + Manifest(files={path: FilePin(bytes=0, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
                for path in ("README.txt", "models/a/card.toml", "wheels/a-1-py3-none-any.whl")}).encoded()
                for kind in (b"m", b"c")
            ),
        ),
        (b"models/", b"wheels/", b".whl", b"/card.toml", b"../", b'"bytes": ', b'"format": 1', b"\\u0000"),
    ),
    "card": Target(
        try_card,
        (
            *(path.read_bytes() for path in sorted(Path("models").glob("*/card.toml"))),
            _table(card_table(matryoshka={"dimensions": [4, 8], "layer_norm": True}, prompts=PROMPTS)),
            _table(variant_table(aliases=["other"], default_prompt="query")),
        ),
        (b"base = ", b"folder = ", b"[files]", b"[[sources]]", b"prompts = ", b"1979-05-27", b"nan", b'"""'),
    ),
}  # fmt: skip
