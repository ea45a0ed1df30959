"""The command `embedding-server doctor`.

Imports what it needs when it runs, so that mistakes and `--help` answer at once.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from server.commands.flags import Witnessing, with_flags
from server.errors import SelfTestFailed
from server.settings import Settings


@with_flags("model", "models_dir", "data_dir", "threads", "device", "dtype", "min_parity")
def doctor(
    settings: Settings,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Prove that serving opens no socket beyond this machine."),
    ] = False,
    witness: Witnessing = False,
) -> None:
    """Test this installation: files, vectors against the models' references, memory, threads."""
    if offline:
        # Before anything starts a thread: only a process with one can leave its network.
        from server.commands.network_namespace import enter_network_namespace

        enter_network_namespace()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from server.commands.self_test import examine

    settings.check_data_dir()
    bad = 0
    for finding in examine(settings, offline=offline, witness=witness):
        verdict = "ok " if finding.good else "BAD"
        print(f"{verdict}  {finding.subject}: {finding.text}", flush=True)
        bad += not finding.good
    if bad:
        raise SelfTestFailed(f"{bad} of the checks failed")
