"""In which numbers this processor is quick, beside float32.

What has no instructions for bfloat16 or int8 emulates them, slower than float32. Pure but for one
file of the system; any thread may call.
"""

from __future__ import annotations

import functools
from pathlib import Path

from server.catalog.card import Dtype

# As Linux calls them in /proc/cpuinfo: products of bfloat16, and sums of int8 products into int32
# (VNNI and what came after it). Of x86 alone: nobody has seen that OpenVINO computes in ARM's.
_INSTRUCTIONS: dict[Dtype, frozenset[str]] = {
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16"}),
    "int8": frozenset({"avx512_vnni", "avx_vnni", "amx_int8"}),
}
_NAMES: dict[Dtype, str] = {
    "bfloat16": "AVX512_BF16 or AMX",
    "int8": "AVX512_VNNI or AVX_VNNI",
}


@functools.cache
def quick_dtypes(root: Path = Path("/")) -> tuple[Dtype, ...]:
    """What the processor has instructions for; none where the system does not tell.

    Args:
        root: where `proc` is.
    """
    flags = _flags(root)
    return tuple(dtype for dtype, known in _INSTRUCTIONS.items() if known & flags)


def instructions_for(dtype: Dtype) -> str:
    """What a processor must have to be quick in these numbers, for people."""
    return _NAMES[dtype]


def _flags(root: Path) -> frozenset[str]:
    """What every core has."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    listed = [line.partition(":") for line in lines]
    cores = [set(text.split()) for name, _, text in listed if name.strip() == "flags"]
    return frozenset(set.intersection(*cores)) if cores else frozenset()
