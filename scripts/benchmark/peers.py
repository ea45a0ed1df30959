"""The parent's side of `peer`: what computes in process, measured like the servers."""

from __future__ import annotations

import json
import sys
from typing import Any

from scripts.benchmark.processes import Process


class InProcess(Process):
    """A child that runs `peer` of one kind."""

    def __init__(self, kind: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "scripts.benchmark.peer", kind, *arguments]
        super().__init__(kind, command, environment={"HF_HUB_OFFLINE": "1"})

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Have something done and wait for the answer.

        Raises:
            BenchError: the child died.
        """
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        try:
            self.popen.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self.popen.stdin.flush()
            line = self.popen.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self.failed("ended")
        return dict(json.loads(line))
