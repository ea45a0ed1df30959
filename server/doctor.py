"""The self-test: whether this machine computes what each model's card vouches for.

Each check is one line, good or bad, so that one failure hides no other. For the command line; one
thread.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from server import __version__
from server.catalog.card import Card
from server.catalog.registry import read_registry
from server.catalog.verify import check_files, check_present
from server.errors import EmbeddingServerError
from server.inference.cpu_cores import usable_cores
from server.inference.direct import cosines, embed_texts
from server.inference.loader import load_encoder, load_rotation
from server.network_namespace import packets_without_route
from server.settings import Settings

MIN_COSINE = 0.9999  # of what another processor computes in float32; far below rounding errors
SHOWN_PACKAGES = ("onnxruntime", "tokenizers", "numpy", "uvicorn")
# Weights as they lie on disk, once more while ONNX Runtime lays them out, and the process itself.
MEMORY_FACTOR, PROCESS_BYTES = 2, 150_000_000
START_TIMEOUT_S = 120
BACKGROUND_S = 3  # what a library sends by itself it sends within this time


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw."""

    subject: str
    text: str
    good: bool = True


def examine(settings: Settings, *, offline: bool) -> Iterator[Finding]:
    """Run all checks, one after the other.

    Args:
        offline: this process was moved into a network namespace without a way out; serve and embed
            in it, then ask the kernel whether anything tried to leave.

    Raises:
        StartupError: the settings or a card are wrong, so that there is nothing to test.
    """
    cards = read_registry(*settings.model_folders()).select(settings.model).cards
    yield _software()
    yield _processor(settings)
    yield _memory(cards)
    for card in cards:
        for check in (_files, _vectors):
            yield _guarded(check, card)
    if offline:
        yield _guarded(lambda card: _stays_inside(settings, card), cards[0])


def _guarded(check: Callable[[Card], Finding], card: Card) -> Finding:
    try:
        return check(card)
    except EmbeddingServerError as error:
        return Finding(card.name, error.message, good=False)


def _software() -> Finding:
    packages = ", ".join(f"{name} {version(name)}" for name in SHOWN_PACKAGES)
    return Finding(
        "software",
        f"embedding-server {__version__}, Python {platform.python_version()}, {packages}",
    )


def _processor(settings: Settings) -> Finding:
    cores = usable_cores()
    threads = settings.threads or cores
    text = f"{cores} cores usable, {threads} worker threads a model, {platform.machine()}"
    return Finding("processor", text, good=threads <= cores)


def _memory(cards: tuple[Card, ...]) -> Finding:
    """Whether the models fit; an estimate, since only loading them tells."""
    encoders = {card.encoder.name: card.encoder for card in cards}
    weights = sum(pin.bytes for card in encoders.values() for pin in card.files.values())
    wanted = weights * MEMORY_FACTOR + PROCESS_BYTES
    free = available_bytes()
    if free is None:
        return Finding("memory", f"about {wanted / 1e9:.1f} GB are needed; unknown what is free")
    text = f"{free / 1e9:.1f} GB available, about {wanted / 1e9:.1f} GB needed"
    return Finding("memory", text, good=wanted <= free)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take: of the machine and of its cgroup; None if unknown."""
    found: list[int] = []
    try:
        table = (root / "proc/meminfo").read_text()
        found += [int(kib) * 1024 for kib in re.findall(r"MemAvailable:\s+(\d+) kB", table)]
    except OSError:
        pass
    cgroup = root / "sys/fs/cgroup"
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(int((cgroup / limit).read_text()) - int((cgroup / used).read_text()))
        except (OSError, ValueError):  # no such version, or no limit
            continue
    return min(found, default=None)


def _files(card: Card) -> Finding:
    check_present(card)
    owners = [card.base, card] if card.base else [card]
    for owner in owners:
        check_files(owner)
    files = sum(len(owner.files) for owner in owners)
    size = sum(pin.bytes for owner in owners for pin in owner.files.values())
    text = f"{files} files, {size / 1e6:.1f} MB, sha256 as the card says; {card.fingerprint}"
    return Finding(card.name, text)


def _vectors(card: Card) -> Finding:
    encoder = load_encoder(card.encoder)
    load_rotation(card)
    reference = card.encoder.reference
    texts = list(reference.texts) if reference else ["Hello, world"]
    began_s = time.perf_counter()
    found = embed_texts(encoder, texts)
    ms = (time.perf_counter() - began_s) * 1e3 / len(texts)
    if not np.isfinite(found).all():
        return Finding(card.name, "the vectors are not finite", good=False)
    if reference is None:
        return Finding(card.name, f"a forward pass in {ms:.0f} ms; the card has no reference")
    stored = load_file(card.encoder.path(reference.file))["embeddings"]
    lowest = float(np.min(cosines(found, stored)))
    text = f"reference vectors: smallest cosine {lowest:.7f}, {ms:.0f} ms a text"
    return Finding(card.name, text, good=lowest >= MIN_COSINE)


def _stays_inside(settings: Settings, card: Card) -> Finding:
    """Serve and embed where there is only loopback; the kernel counts what tried to leave."""
    before = packets_without_route()
    flags = ["--host", "127.0.0.1", "--port", "0", "--model", card.name]
    flags += ["--models-dir", str(settings.models_dir), "--data-dir", str(settings.data_dir)]
    environment = {k: v for k, v in os.environ.items() if k != "CI"}  # some are quiet in CI
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        url = re.search(r"http://\S+?/v1/embeddings", ready)
        if url is None:
            _, errors = process.communicate(timeout=START_TIMEOUT_S)
            reason = (errors.strip().splitlines() or ["no reason given"])[-1]
            return Finding("offline", f"the server did not start: {reason}", good=False)
        request = urllib.request.Request(
            url[0],
            json.dumps({"model": card.name, "input": "Hello, world"}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as answer:
            count = len(json.load(answer)["data"])
        time.sleep(BACKGROUND_S)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=START_TIMEOUT_S)
    tried = packets_without_route() - before
    if tried:
        return Finding("offline", f"{tried} attempts to leave this machine", good=False)
    text = f"served {count} vector where only loopback exists; nothing tried to leave"
    return Finding("offline", text)
