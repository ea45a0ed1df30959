"""What a run's figures depend on: processor, versions, commit. No name or path of the machine."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.benchmark.targets import REPOSITORY
from server.inference.cpu_cores import usable_cores

_PACKAGES = (
    *("onnxruntime", "tokenizers", "numpy", "uvicorn", "uvloop", "httptools", "orjson", "fastapi"),
    *("starlette", "pydantic", "torch", "transformers", "sentence-transformers", "psutil"),
)
# Instruction sets that decide how fast matrix products are.
_VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def facts(arguments: Sequence[str]) -> dict[str, Any]:
    """Of a run that begins now, with these arguments."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command_shown(arguments),
        "commit": _commit(),
        "machine": {
            "processor": model.group(1) if model else platform.processor() or platform.machine(),
            "vector_instructions": " ".join(set(_VECTOR_FLAGS) & set(text.split())),
            "cores_used": usable_cores(),
            "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "packages": versions,
    }


def _commit() -> str:
    """The checkout's commit, with a mark if files differ from it."""
    described = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git here
        silent = {"stderr": subprocess.DEVNULL}
        return subprocess.check_output(described, cwd=REPOSITORY, text=True, **silent).strip()
    return "unknown"


def command_shown(arguments: Sequence[str]) -> str:
    """The command of this run; of absolute paths only the last part."""
    shown = " ".join(f"'{part}'" if " " in part else part for part in arguments)
    return "python scripts/bench.py " + re.sub(r"(?<![\w.])/[^\s'\"=]*/", "", shown)
