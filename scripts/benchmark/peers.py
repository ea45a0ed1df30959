"""The parent's side of `peer` and of what answers like it: measured like the servers."""

from __future__ import annotations

import json
import sys
from typing import Any

from scripts.benchmark.processes import BenchError, Process

_PEER = "peer"


class InProcess(Process):
    """A child that answers lines.

    Args:
        kind: what it is called, and for `peer` what it is.
        module: the module of this folder that it runs.
    """

    def __init__(self, kind: str, *arguments: str, module: str = _PEER) -> None:
        told = [kind, *arguments] if module == _PEER else arguments
        command = [sys.executable, "-m", f"scripts.benchmark.{module}", *told]
        super().__init__(kind, command, environment={"HF_HUB_OFFLINE": "1"})

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Have something done and wait for the answer.

        Raises:
            BenchError: the child died, or tells what went wrong.
        """
        self.tell(do, **fields)
        return self.hear()

    def tell(self, do: str, **fields: Any) -> None:
        """Have something done; `hear` waits for the answer."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            raise self.failed("ended") from None

    def hear(self) -> dict[str, Any]:
        """The answer to what was told.

        Raises:
            BenchError: the child died, or tells what went wrong.
        """
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise self.failed("ended")
        answer = dict(json.loads(line))
        if "problem" in answer:
            raise BenchError(f"{self.name}: {answer['problem']}")
        return answer
