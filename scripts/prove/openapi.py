"""Does the server do what its /openapi.json says? schemathesis asks, with a key, in every way it knows.

    python -m scripts.prove.openapi               # a minute
    python -m scripts.prove.openapi --seconds 1200

Starts a server of its own on loopback and ends it. The exit code is 1 if something is found.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import schemathesis

from scripts.prove.tables import options
from server.catalog.prompts import PURPOSES
from tests.server_process import ServerProcess

KEY = "sk-openapi-0123456789abcdef0123456789"
MODELS = ("all-MiniLM-L6-v2-matryoshka", "text-embedding-3-small")
IDS = 100_256  # of cl100k_base, without its special tokens
DIMENSIONS = 384


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Give a request that should succeed what no schema can say: names and numbers of this server."""
    body = case.body
    if not (case.meta.generation.mode.is_positive and isinstance(body, dict)):
        return
    model = body.get("model")
    if isinstance(model, str) and len(model) % 4:  # the others stay unknown: 404
        body["model"] = MODELS[len(model) % len(MODELS)]
    if isinstance(body.get("dimensions"), int | float):
        body["dimensions"] = 1 + int(body["dimensions"]) % DIMENSIONS
    if isinstance(body.get("input_type"), str):
        body["input_type"] = list(PURPOSES)[len(body["input_type"]) % len(PURPOSES)]
    body["truncate"] = True
    body["input"] = _with_known_ids(body.get("input"))
    (case.headers or {}).pop("x-expect-embedding-fingerprint", None)


def _with_known_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_known_ids(one) for one in value]
    # JSON Schema takes 1.0 for an integer, which this server does not.
    return int(value) % IDS if isinstance(value, int | float) else value


def prove(server: ServerProcess, *flags: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Run all of its checks.

    Args:
        flags: of `schemathesis run`.
    """
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    with tempfile.TemporaryDirectory() as folder:  # where it keeps what it found
        return subprocess.run(
            [*command, "--header", f"Authorization: Bearer {key}", "--checks", "all",
             "--phases", "examples,coverage,fuzzing", "--warnings", "off", *flags],
            cwd=folder,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "scripts.prove.openapi", "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip


def main() -> None:
    """Print what schemathesis says."""
    seconds = options(__doc__, seconds=60).seconds
    with ServerProcess("--api-key", KEY) as server:
        found = prove(server, "--max-time", str(seconds), "--continue-on-failure")
    print(found.stdout, found.stderr)
    sys.exit(found.returncode)


if __name__ == "__main__":
    main()
