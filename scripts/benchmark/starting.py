"""Which targets a run starts, and how each is made."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmark.measuring import Load
from scripts.benchmark.results import Results
from scripts.benchmark.scenario import Bench, Scenario
from scripts.benchmark.targets import (
    REPOSITORY,
    Peer,
    Target,
    fetch_model,
    guarded_server,
    infinity_server,
    own_server,
)

CPU, TORCH_CPU = "cpu", "torch-cpu"  # the second is a smoke run of the scenarios for GPUs
PEERS = ("infinity", "sentence-transformers", "onnxruntime", "engine")


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
    torch_device = "cuda:0" if device == "cuda" else device
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    ours, others = (
        ["--device", device, *(asked.serve_args if flags is None else flags)]
        for flags in (None, asked.against)
    )
    makers: dict[str, Callable[[str], Target]] = {
        "matrix product": lambda name: Peer(name, "peers:MatrixProduct"),
        "torch": lambda name: Peer(
            name, "peer_torch:TorchPeer", torch_device, *(row.name for row in rows)
        ),
        "sentence-transformers": lambda name: Peer(
            name,
            "peers:SentenceTransformers",
            str(asked.st_folder or fetch_model(asked.cache)),
            torch_device,
        ),
        "onnxruntime": lambda name: Peer(name, "peers:OnnxRuntime"),
        "engine": lambda name: Peer(name, "peer_engine:EnginePeer", device),
        "infinity": lambda name: infinity_server(name, asked.cache),
        "ours": lambda name: own_server(name, ours),
        "against": lambda name: own_server(name, others, asked.against_checkout or REPOSITORY),
        "ours, with keys": lambda name: guarded_server(name, ours, scratch),
    }
    needed = {name for row in rows for name in (*row.targets, *row.needs)}
    if asked.kind == "cpu":
        needed -= set(PEERS) - set(asked.peer)
    if asked.against is None and asked.against_checkout is None:
        needed.discard("against")
    if not asked.guarded:
        needed.discard("ours, with keys")

    def started(target: Target) -> Target:
        return stack.enter_context(contextlib.closing(target))

    targets = {name: started(make(name)) for name, make in makers.items() if name in needed}
    count = (2 if asked.quick else 6) if "load" in needed else 0
    clients = [Peer(f"load {number}", "peers:LoadPeer") for number in range(count)]
    for client in clients:
        started(client)
    return Bench(targets, Load(clients), ours, results)
