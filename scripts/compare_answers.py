"""Compare what two versions of the server answer, byte for byte, over thousands of requests.

    git worktree add ../before COMMIT   # with an environment of its own, as `make install` makes it
    python scripts/compare_answers.py ../before . --requests 2000

Starts a server from each folder, sends both the same generated requests, good and bad, one after
the other, and prints those whose status, headers or body differ. What changes from moment to
moment (dates, ids, seconds) is left out of the comparison, and nothing else.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MODEL, VARIANT = "all-MiniLM-L6-v2", "all-MiniLM-L6-v2-matryoshka"
PLAIN_KEY, LIMITED_KEY, POOR_KEY = (
    "sk-plain-0123456789abcdef",
    "sk-limited-0123456789abcd",
    "sk-poor-0123456789abcdef0",
)
KEYS = (
    ("plain", PLAIN_KEY),
    ("limited", LIMITED_KEY, "--rpm", "25", "--tpm", "4000"),
    ("poor", POOR_KEY, "--token-budget", "800"),
)
MOMENTARY = {"date", "openai-processing-ms", "x-request-id"}
# Seconds until a limit is whole again, and what is left of it: both move with the clock.
CLOCKED = re.compile(r"x-ratelimit-(reset|remaining)-|retry-after")
WORDS = [
    *[
        "a",
        "of",
        "embedding",
        "vector",
        "Straße",
        "naïve",
        "漢字",
        "🙂",
        "server",
        "token",
        "1234",
        "hello,",
        "world",
    ],
    "\t",
    "\n",
]


@dataclass
class Sent:
    """One request."""

    method: str = "POST"
    path: str = "/v1/embeddings"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What can be compared of an answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def text(random_: random.Random) -> str:
    """Some words, sometimes very many."""
    count = random_.choice([1, 2, 5, 12, 40, 120, 600])
    return " ".join(random_.choices(WORDS, k=count)) or "x"


def good_input(random_: random.Random) -> object:
    """An input that the contract allows, though it may be too long."""
    ids = [random_.randrange(0, 30_000) for _ in range(random_.randrange(1, 30))]
    several = [text(random_) for _ in range(random_.randrange(1, 6))]
    return random_.choice([text(random_), several, ids, [ids, ids[:1]]])


BAD_INPUTS: tuple[object, ...] = (
    "", [], [""], ["a", ""], None, 7, True, {}, [None], ["a", 1], [1, "a"], [[]], [[1], "a"], [-1],
    [200_000], [[1, 10**12]], [1.5], ["a"] * 2_049, [["a"]],
)  # fmt: skip
FIELDS: dict[str, tuple[object, ...]] = {
    "dimensions": (1, 32, 64, 64, 128, 256, 383, 384, 384, 384, 385, 0, -1, "64", 1.0, None, True),
    "encoding_format": (*["float", "base64"] * 4, "int8", None, 1),
    "user": (*["someone"] * 6, "", "u" * 300, 7, None),
    "safety_identifier": (*["someone"] * 6, None, []),
    "truncate": (*[True, False] * 4, "yes", None),
    "input_type": (*["query", "document"] * 4, "other", None),
}


def fields(random_: random.Random) -> dict[str, object]:
    """A body as an object; about a third of them is wrong somewhere."""
    asked: dict[str, object] = {
        "model": random_.choice([MODEL, VARIANT] * 4 + ["text-embedding-3-small", "other", "", 5]),
        "input": good_input(random_) if random_.random() < 0.85 else random_.choice(BAD_INPUTS),
    }
    for name, values in FIELDS.items():
        if random_.random() < 0.25:
            asked[name] = random_.choice(values)
    if random_.random() < 0.03:
        asked[random_.choice(["texts", "x" * 200, "prompt"])] = 1
    for name in ("model", "input"):
        if random_.random() < 0.02:
            del asked[name]
    return asked


def encoded(random_: random.Random, body: bytes) -> tuple[str, bytes]:
    """A body and its Content-Encoding: mostly plain, else compressed, marked, cut, or no text."""
    damaged = [b"\xef\xbb\xbf" + body, body[: len(body) // 2], body.replace(b"a", b"\xff", 1)]
    return random_.choice(
        [
            *[("", body)] * 14,
            *[("", other) for other in damaged],
            ("gzip", gzip.compress(body, mtime=0)),
            ("deflate", zlib.compress(body)),
            ("br", body),
            ("gzip", body),
        ]
    )


def generate(seed: int, count: int) -> Iterator[Sent]:
    """The requests, the same for the same seed."""
    random_ = random.Random(seed)
    paths = ["/v1/models", f"/v1/models/{MODEL}", "/v1/models/none", "/v1/models/", "/livez",
             "/readyz", "/embeddings", "/v1/v1/embeddings", "/v1/embeddings/", "/nothing", "/health"]  # fmt: skip
    keys = [PLAIN_KEY] * 12 + [LIMITED_KEY, POOR_KEY, "sk-wrong", ""]
    for _ in range(count):
        key = random_.choice(keys)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        if random_.random() < 0.1:
            yield Sent(
                random_.choice(["GET", "GET", "HEAD", "PUT"]), random_.choice(paths), headers
            )
            continue
        if random_.random() < 0.05:
            pin = random_.choice(["0" * 16, "zz", "e3d5a2c6f1b49870", ""])
            headers["x-expect-embedding-fingerprint"] = pin
        asked = json.dumps(fields(random_), ensure_ascii=random_.random() < 0.5).encode()
        encoding, body = encoded(random_, asked)
        headers |= {"content-encoding": encoding} if encoding else {}
        yield Sent(headers={**headers, "content-type": "application/json"}, body=body)


class Version:
    """A server of one version of the software."""

    def __init__(self, tree: Path, flags: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="compare-answers-")
        command = [str(tree / ".venv/bin/python"), "-m", "server"]
        prefix = "EMBEDDING_SERVER_"
        settings = {
            "DATA_DIR": f"{self._folder.name}/home",
            "PORT": "0",
            "MODEL": f"{MODEL},{VARIANT}",
        }
        environment = {**os.environ, **{prefix + name: value for name, value in settings.items()}}
        environment["PYTHONHASHSEED"] = "0"  # the order of a set is no difference
        secrets = Path(self._folder.name, "secrets")
        for name, secret, *limits in KEYS:
            secrets.write_text(f"{name} {secret}\n")
            importing = [*command, "keys", "import", str(secrets), *limits]
            subprocess.run(importing, cwd=tree, env=environment, check=True, capture_output=True)
        self._process = subprocess.Popen(
            [*command, "serve", *flags],
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self._process.stdout.readline())
        if found is None:
            raise SystemExit(f"the server of {tree} does not start")
        self._connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)

    def answer(self, sent: Sent) -> Answer:
        """Send it and read the whole answer."""
        self._connection.request(sent.method, sent.path, sent.body or None, sent.headers)
        response = self._connection.getresponse()
        body = response.read()
        headers = [
            (name.lower(), "CLOCK" if CLOCKED.match(name.lower()) else value)
            for name, value in response.getheaders()
            if name.lower() not in MOMENTARY
        ]
        return Answer(response.status, tuple(sorted(headers)), body)

    def close(self) -> None:
        """Stop the server."""
        self._connection.close()
        self._process.terminate()
        self._process.wait(timeout=60)
        self._folder.cleanup()


def comparable(answer: Answer) -> Answer:
    """Without the seconds and amounts that a refusal by a limit tells."""
    if answer.status != 429:
        return answer
    headers = tuple(pair for pair in answer.headers if pair[0] != "content-length")
    return Answer(answer.status, headers, re.sub(rb"\d+", b"N", answer.body))


def vectors_of(answer: Answer) -> np.ndarray | None:
    """All numbers of an answer; None if it holds no vectors."""
    if answer.status != 200 or b'"embedding"' not in answer.body:
        return None
    rows = [row["embedding"] for row in json.loads(answer.body)["data"]]
    read = [np.frombuffer(base64.b64decode(r), "<f4") if isinstance(r, str) else r for r in rows]
    return np.array(read, np.float64)


def largest_difference(before: Answer, after: Answer) -> str:
    """How far vectors are from each other, in words; nothing if these are none."""
    first, second = vectors_of(before), vectors_of(after)
    if first is None or second is None or first.shape != second.shape:
        return ""
    return f"vectors differ by {np.abs(first - second).max():.1e}"


def main() -> None:
    """Exit code 1 if an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--flag", action="append", default=[], help="for both servers")
    arguments = parser.parse_args()
    statuses: Counter[int] = Counter()
    different = 0
    with contextlib.ExitStack() as stack:
        versions = []
        for tree in (arguments.before, arguments.after):
            version = Version(tree.resolve(), arguments.flag)
            stack.callback(version.close)
            versions.append(version)
        for number, sent in enumerate(generate(arguments.seed, arguments.requests)):
            before, after = (comparable(version.answer(sent)) for version in versions)
            statuses[before.status] += 1
            if before != after:
                different += 1
                by = largest_difference(before, after)
                print(f"{number}: {sent.method} {sent.path} {by} {sent.body[:200]!r}")
                for one, other in ((before, after), (after, before)):
                    headers = dict(set(one.headers) - set(other.headers))
                    print(f"    {one.status} {headers} {one.body[:200]!r}")
    told = ", ".join(f"{count} of {status}" for status, count in sorted(statuses.items()))
    print(f"{arguments.requests} requests, {different} answers differ; statuses: {told}")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
