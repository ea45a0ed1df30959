"""Which targets a run starts, and how each is made."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmark.measuring import Load
from scripts.benchmark.results import Results
from scripts.benchmark.scenario import AGAINST, GUARDED, OURS, Bench, Scenario
from scripts.benchmark.targets import (
    REPOSITORY,
    Peer,
    PeerOptions,
    Server,
    Target,
    guarded_server,
    infinity_server,
    own_server,
)

CPU, TORCH_CPU = "cpu", "torch-cpu"  # the second is a smoke run of the scenarios for GPUs
# Peers by their names: module and class.
PLUGINS = {
    "sentence-transformers": "peers:SentenceTransformers",
    "onnxruntime": "peers:OnnxRuntime",
    "engine": "peer_engine:EnginePeer",
    "matrix product": "peers:MatrixProduct",
    "torch": "peer_torch:TorchPeer",
    "load": "peers:LoadPeer",
}
# What --peer may name: rivals and bare engines.
PEERS = ("infinity", "sentence-transformers", "onnxruntime", "engine")


def needed_targets(asked: argparse.Namespace, rows: Sequence[Scenario]) -> set[str]:
    """The names of what a run starts: of its scenarios' targets, those that were asked for."""
    needed = {name for row in rows if not row.always for name in (*row.targets, *row.needs)}
    if asked.kind == "cpu":
        needed -= set(PEERS) - set(asked.peer)
    else:
        needed.add("torch")  # which tells what the device is
    if asked.against is None and asked.against_checkout is None:
        needed.discard(AGAINST)
    if not asked.guarded:
        needed.discard(GUARDED)
    return needed


def start(
    asked: argparse.Namespace,
    rows: Sequence[Scenario],
    results: Results,
    stack: contextlib.ExitStack,
) -> Bench:
    """Start what the scenarios of a run need, all at the same time; `stack` ends it.

    Args:
        asked: see `cli.read_arguments`.
    """
    device = CPU if asked.device == TORCH_CPU else asked.device
    ours = ["--device", device, *asked.serve_args]
    others = ours if asked.against is None else ["--device", device, *asked.against]
    checkout = asked.against_checkout or REPOSITORY
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    servers: dict[str, Callable[[], Server]] = {
        OURS: lambda: own_server(OURS, ours),
        AGAINST: lambda: own_server(AGAINST, others, checkout),
        GUARDED: lambda: guarded_server(GUARDED, ours, scratch),
        "infinity": lambda: infinity_server("infinity", asked.cache),
    }
    needed = needed_targets(asked, rows)
    names = tuple(row.name for row in rows)
    options = PeerOptions(device, names, asked.cache, asked.st_folder)

    def peer(name: str) -> Peer:
        return stack.enter_context(contextlib.closing(Peer(name, PLUGINS[name], options)))

    processes = (2 if asked.quick else 6) if "load" in needed else 0
    load = Load([peer("load") for _ in range(processes)])
    targets: dict[str, Target] = {name: peer(name) for name in PLUGINS if name in needed - {"load"}}
    for name, make in servers.items():
        if name in needed:
            targets[name] = stack.enter_context(contextlib.closing(make()))
    return Bench(targets, load, ours, results)
