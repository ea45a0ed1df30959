"""What a run's figures depend on: processor, versions, commit. No name or path of the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from scripts.benchmark.processes import REPOSITORY
from server.inference.cpu_cores import usable_cores

_PACKAGES = (
    *("onnxruntime", "tokenizers", "numpy", "uvicorn", "uvloop", "httptools", "orjson", "fastapi"),
    *("starlette", "pydantic", "torch", "transformers", "sentence-transformers", "psutil"),
)
_INFINITY_PACKAGES = (
    *("infinity-emb", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy"),
    *("fastapi", "uvicorn", "uvloop", "optimum"),
)
# Instruction sets that decide how fast matrix products are.
_VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def machine_facts() -> dict[str, str | int | float]:
    """Processor, memory and operating system."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = set(text.split())
    return {
        "processor": model.group(1) if model else platform.processor() or platform.machine(),
        "vector_instructions": " ".join(flag for flag in _VECTOR_FLAGS if flag in flags),
        "cores_used": usable_cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages of this environment that matter, as far as they are there."""
    return _versions(metadata.distributions(), _PACKAGES)


def infinity_versions(environment: Path) -> dict[str, str]:
    """The same of Infinity's own environment."""
    folders = [str(folder) for folder in environment.glob("lib/python*/site-packages")]
    return _versions(metadata.distributions(path=folders), _INFINITY_PACKAGES)


def _versions(installed: Iterable[metadata.Distribution], wanted: Sequence[str]) -> dict[str, str]:
    versions = {item.metadata["Name"].lower().replace("_", "-"): item.version for item in installed}
    return {name: versions[name] for name in wanted if name in versions}


def commit() -> str:
    """The checkout's commit, with a mark if files differ from it."""
    described = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            described, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"


def command_shown(arguments: Sequence[str]) -> str:
    """The command of this run; of absolute paths only the last part."""
    shown = " ".join(f"'{part}'" if " " in part else part for part in arguments)
    return "python scripts/bench.py " + re.sub(r"(?<![\w.])/[^\s'\"=]*/", "", shown)
