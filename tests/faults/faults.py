"""A server whose device can be made to fail, and which waits less long than it should."""

from __future__ import annotations

import json
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENGINE_LOST = "server.frontends.silence:ENGINE_LOST_TICKS"
FRONT_END_LOST = "server.frontends.silence:FRONT_END_LOST_TICKS"
GIVE_UP = "server.engine.patience:PATIENCE:give_up_after_s"
STUCK = "server.engine.patience:PATIENCE:stuck_after_s"


def with_faults(folder: Path, waits: dict[str, float] | None = None) -> dict[str, str]:
    """The environment of a server process that looks for faults in this folder.

    Args:
        folder: the device fails while it holds a file `fails`, and hangs while it holds `hangs`.
        waits: what is waited for in place of the constants of these names.
    """
    return {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent)]),
        "FAULTS_FOLDER": str(folder),
        "FAULTS_WAITS": json.dumps(waits or {}),
    }
