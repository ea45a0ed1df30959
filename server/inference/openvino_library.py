"""OpenVINO, imported so that nobody is told of it. The one place that imports it.

Its import reports to Intel by `openvino_telemetry`, unless a person opted out, and keeps an id in the
home folder. Where that package cannot be imported it takes a stand-in of its own that does nothing.
"""

from __future__ import annotations

import sys
from typing import Final

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import opset13 as ops  # noqa: E402

from server.errors import first_line  # noqa: E402

# The first look at what a tensor holds makes a table under a lock, and gives the interpreter away
# meanwhile: two threads that come first at once would wait for each other for ever.
_ = ov.Tensor(ov.Type.f32, ov.Shape([1])).data

# The one of this process, which is never let go. The thread in which its plugin for CPUs is loaded gets
# a signal stack from it. The plugin takes it away in the thread in which it is let go; if that is
# another one, the first one's next signal finds no memory and ends the process.
CORE: Final = ov.Core()

__all__ = ["CORE", "last_line", "ops", "ov"]


def last_line(error: Exception) -> str:
    """What an error of OpenVINO says, in one line: before it stand places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
