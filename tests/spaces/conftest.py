"""A server for the clients of this room, whose answers a test scripts."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest


@dataclass
class Scripted:
    """What is answered next: a status, a body and headers; the last one for ever."""

    answers: list[tuple[int, bytes, dict[str, str]]] = field(default_factory=list)
    # Made of the request's body where nothing is scripted.
    make: Callable[[dict[str, Any]], bytes] | None = None
    asked: list[tuple[str, Mapping[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def then(self, status: int, body: bytes | object, **headers: str) -> Scripted:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((status, content, named))
        return self

    def next_answer(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        if not self.answers:
            assert self.make is not None
            return 200, self.make(body), {}
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def embeddings(vectors: Sequence[object], *, model: str = "m", tokens: int = 3) -> dict[str, Any]:
    """An answer with these embeddings; arrays become base64."""
    rows = [
        base64.b64encode(one.astype("<f4").tobytes()).decode()
        if isinstance(one, np.ndarray)
        else one
        for one in vectors
    ]
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": model, "usage": {"total_tokens": tokens}}


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.asked.append((self.path, dict(self.headers), body))
            status, content, headers = script.next_answer(body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}/v1"
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield script
        server.shutdown()
        serving.join()
