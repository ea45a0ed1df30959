"""The self-test: whether this machine computes what each model's card vouches for.

Each check is one line, good or bad, so that one failure hides no other. For the command line; one
thread.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from server import __version__
from server.catalog.card import Card
from server.catalog.verify import check_files, check_present
from server.commands.network_namespace import attempts_to_leave
from server.errors import EmbeddingServerError, first_line
from server.importing.witness.witness import Witness, lack_of
from server.importing.witness_proof import beyond_rounding, compare_with_witness, told
from server.inference.cpu_cores import usable_cores
from server.inference.direct import embed_texts
from server.inference.opening import Opener, select_cards, worker_threads
from server.inference.parity import reference_cosine
from server.program.command_lines import CHECKOUT
from server.settings import ENV_PREFIX, Settings

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


def examine(settings: Settings, *, offline: bool, witness: bool = False) -> Iterator[Finding]:
    """Run all checks, one after the other.

    Args:
        offline: this process was moved into a network namespace without a way out; serve and embed
            in it, then ask the kernel whether anything tried to leave.
        witness: compute some texts once more with numpy, straight from the weights.

    Raises:
        StartupError: the settings or a card are wrong, so that there is nothing to test.
    """
    # Hashed also where serving trusts the disk.
    hashing = settings.model_copy(update={"check_files": "full"})
    opener = Opener.on_this_machine(hashing, spread_alone=False)
    cards = select_cards(settings, settings.model, opener.placement, check_files=False).cards
    yield _software(opener, cards)
    yield _processor(settings)
    yield _memory(cards)
    checks: list[Callable[[Card], Finding]] = [
        _files,
        functools.partial(_vectors, settings, opener),
    ]
    checks += [functools.partial(_witnessed, settings, opener)] if witness else []
    for card in cards:
        for check in checks:
            yield _guarded(check, card)
    if offline:
        yield _guarded(lambda card: _stays_inside(settings, card), cards[0])


def _guarded(check: Callable[[Card], Finding], card: Card) -> Finding:
    try:
        return check(card)
    except EmbeddingServerError as error:
        return Finding(card.name, error.message, good=False)
    except Exception as error:  # a graph or a file of vectors may fail in any way
        reason = first_line(error, unsaid="no reason given")
        return Finding(card.name, f"{type(error).__name__}: {reason}", good=False)


def _software(opener: Opener, cards: tuple[Card, ...]) -> Finding:
    """The versions of what computes, of other packages that are always there, and of Python."""
    kinds = [opener.placement.backend_for(card).kind for card in cards]
    names = (*SHOWN_PACKAGES, *dict.fromkeys(kind.extra for kind in kinds if kind.extra))
    packages = ", ".join(f"{name} {_version(name)}" for name in names)
    return Finding(
        "software",
        f"embedding-server {__version__}, Python {platform.python_version()}, {packages}",
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # it can be imported, and nobody says which one it is
        return "of unknown version"


def _processor(settings: Settings) -> Finding:
    cores, threads = usable_cores(), worker_threads(settings)
    text = f"{cores} cores usable, {threads} worker threads a model, {platform.machine()}"
    return Finding("processor", text, good=threads <= cores)


def _memory(cards: tuple[Card, ...]) -> Finding:
    """Whether the models fit; an estimate, since only loading them tells."""
    encoders = {card.encoder_card.name: card.encoder_card for card in cards}
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


def _vectors(settings: Settings, opener: Opener, card: Card) -> Finding:
    devices = opener.placement.backend_for(card).devices
    encoder = opener.load_encoder(card.encoder_card)
    opener.open_rotation(card)
    began_s = time.perf_counter()
    found = embed_texts(encoder, ["Hello, world"])
    ms = (time.perf_counter() - began_s) * 1e3
    where = f"{card.dtype} on {', '.join(devices)}"
    if not np.isfinite(found).all():
        return Finding(card.name, f"the vectors are not finite ({where})", good=False)
    lowest = reference_cosine(encoder, card.encoder_card)
    if lowest is None:
        text = f"a forward pass in {ms:.0f} ms ({where}); the card has no reference"
        return Finding(card.name, text)
    text = f"reference vectors: smallest cosine {lowest:.7f}, {ms:.0f} ms a text ({where})"
    return Finding(card.name, text, good=lowest >= opener.min_parity(card))


def _witnessed(settings: Settings, opener: Opener, card: Card) -> Finding:
    """What serves the model, against the witness; rounding alone differs only in float32 on a CPU."""
    witness = Witness.of_card(card.encoder_card)
    if witness is None:
        return Finding(card.name, lack_of(card.architecture))
    encoder = opener.load_encoder(card.encoder_card)
    found = compare_with_witness(witness, encoder, card.prompts.values())
    exact = opener.placement.backend_for(card).on_cpu and card.dtype == "float32"
    good = beyond_rounding(found) is None if exact else found.min_cosine >= opener.min_parity(card)
    return Finding(card.name, told(witness, found), good=good)


def _stays_inside(settings: Settings, card: Card) -> Finding:
    """Serve and embed where there is only loopback; the kernel counts what tried to leave."""
    before = attempts_to_leave()
    with tempfile.TemporaryDirectory() as scratch:
        for installed in settings.model_folders()[1:]:
            (Path(scratch) / "models").symlink_to(installed.resolve())
        flags = ["--host", "127.0.0.1", "--port", "0", "--model", card.name]
        # A data folder of its own: neither keys nor the ledger are those of the running server.
        flags += ["--device", settings.device, "--dtype", settings.dtype]
        flags += ["--models-dir", str(settings.models_dir.resolve()), "--data-dir", scratch]
        with (Path(scratch) / "log").open("w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=CHECKOUT,  # where Python looks for `server` first
                env=_plain_environment(),
            )
            try:
                count = _embed_once(process, card)
                time.sleep(BACKGROUND_S)
            except (OSError, ValueError, HTTPException) as error:
                process.terminate()
                _wait(process)
                log.seek(0)
                reason = (log.read().strip().splitlines() or [str(error)])[-1]
                return Finding("offline", f"the server did not serve: {reason}", good=False)
            finally:
                process.terminate()
                _wait(process)
    tried = attempts_to_leave() - before
    if tried:
        return Finding("offline", f"{tried} attempts to leave this machine", good=False)
    text = f"served {count} vector where only loopback exists; nothing tried to leave"
    return Finding("offline", text)


def _plain_environment() -> dict[str, str]:
    """The environment without settings, so that the server asks for no key and no database."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(ENV_PREFIX) and name != "CI"  # some are quiet in CI
    }


def _embed_once(process: subprocess.Popen[bytes], card: Card) -> int:
    """How many vectors the server gives for one text, once it is ready.

    Raises:
        OSError, ValueError, HTTPException: it does not come up or does not answer as it should.
    """
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
    if not readable:
        raise TimeoutError(f"not ready after {START_TIMEOUT_S} s")
    port = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline().decode())
    if port is None:
        raise ValueError("no reason given")
    connection = HTTPConnection("127.0.0.1", int(port[1]), timeout=START_TIMEOUT_S)  # by no proxy
    with contextlib.closing(connection):
        body = json.dumps({"model": card.name, "input": "Hello, world"})
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != HTTPStatus.OK:
            raise ValueError(f"status {answer.status}")
        return len(json.loads(content)["data"])


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
