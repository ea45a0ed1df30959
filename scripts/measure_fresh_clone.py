"""Measure a new user's first minute; needs only Python, git and make.

docs/explanation/benchmarks.md has the figures. Clones this checkout into a temporary folder, runs
`make serve` there with an empty HOME, and prints: seconds to the first vector, installed size,
seconds from process start to ready (median of several), resident memory at ready and after work.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PORT = 18432
URL = f"http://127.0.0.1:{PORT}/v1/embeddings"
STARTS = 7
GIVE_UP_S = 600
# No two are equal: those would be computed once.
LONG_TEXTS = [f"{n} " + "a passage of about two hundred words " * 30 for n in range(64)]


def embed(texts: str | list[str]) -> dict[str, Any]:
    """The server's answer; urllib.error.URLError while it is not ready."""
    body = {"model": "all-MiniLM-L6-v2-matryoshka", "input": texts, "truncate": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(URL, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return dict(json.load(answer))


def first_vector_s(clone: Path, environment: dict[str, str]) -> float:
    """Seconds from `make serve` in a new clone to the first vector; stops the server again."""
    command = ["make", "serve", f"ARGS=--port {PORT} --log-level warning"]
    started = time.perf_counter()
    # Its own process group, since make passes no signal on to what it runs.
    serving = subprocess.Popen(command, cwd=clone, env=environment, start_new_session=True)
    try:
        while serving.poll() is None and time.perf_counter() - started < GIVE_UP_S:
            try:
                embed("Hello, world")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
            else:
                return time.perf_counter() - started
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        serving.wait()
    sys.exit("make serve gave no vector")


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in 10^6 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def start(clone: Path, environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds to ready, resident MB at ready, resident MB after LONG_TEXTS."""
    command = [".venv/bin/embedding-server", "serve", f"--port={PORT}", "--log-level=warning"]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=clone, env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()  # the ready line
        ready_s = time.perf_counter() - started
        at_ready = resident_mb(server.pid)
        embed(LONG_TEXTS)
        after_work = resident_mb(server.pid)
        server.terminate()
    return ready_s, at_ready, after_work


def size_mb(*folders: Path) -> float:
    """Bytes of all files below the folders, in 10^6."""
    files = (file for folder in folders for file in folder.rglob("*") if not file.is_symlink())
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def main() -> None:
    """Print the figures."""
    checkout = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        clone, home = Path(scratch, "clone"), Path(scratch, "home")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", checkout, clone], check=True)
        environment = {**os.environ, "HOME": str(home)}
        vector_s = first_vector_s(clone, environment)
        installed_mb = size_mb(clone / ".venv", clone / "models")
        torch = any((clone / ".venv").rglob("site-packages/torch"))
        starts = [start(clone, environment) for _ in range(STARTS)]
    ready_s, at_ready, after_work = (
        statistics.median(column) for column in zip(*starts, strict=True)
    )
    print(f"make serve in a new clone, empty HOME: first vector after {vector_s:.0f} s")
    print(f"installed: {installed_mb:.0f} MB with the model, {'with' if torch else 'no'} torch")
    print(f"process start to ready: {ready_s:.2f} s, median of {STARTS}")
    print(f"resident memory: {at_ready:.0f} MB at ready, {after_work:.0f} MB after 64 long texts")


if __name__ == "__main__":
    main()
