"""What a processor is quick in is read where Linux tells it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from server.inference.cpu_instructions import quick_dtypes


def machine(root: Path, *cores: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("\n\n".join(f"processor\t: 0\n{core}" for core in cores))
    return root


@pytest.mark.parametrize(
    ("line", "quick"),
    [
        ("flags\t\t: fpu sse avx2 fma", ()),
        ("flags\t\t: fpu avx512f avx512bw avx512_vnni", ("int8",)),  # Cascade Lake
        ("flags\t\t: fpu avx2 avx_vnni", ("int8",)),  # Alder Lake
        ("flags\t\t: avx512_vnni avx512_bf16", ("bfloat16", "int8")),  # Zen 4
        ("flags\t\t: amx_bf16 amx_tile amx_int8", ("bfloat16", "int8")),
        ("Features\t: fp asimd i8mm bf16", ()),  # ARM, where nobody has tried
        ("bugs\t\t: avx512_vnni avx512_bf16", ()),
    ],
)
def test_instructions_are_found_by_the_names_that_linux_gives_them(
    tmp_path: Path, line: str, quick: tuple[str, ...]
) -> None:
    assert quick_dtypes(machine(tmp_path, line, line)) == quick


def test_every_core_must_have_them(tmp_path: Path) -> None:
    assert quick_dtypes(machine(tmp_path, "flags : avx_vnni avx2", "flags : avx2")) == ()


def test_a_system_that_does_not_tell_is_quick_in_nothing_else(tmp_path: Path) -> None:
    assert quick_dtypes(tmp_path) == ()


def test_this_processor_is_quick_in_what_it_has_instructions_for() -> None:
    """Else the tests of low precision would assert refusals everywhere, and pass."""
    told = Path("/proc/cpuinfo").read_text() if platform.machine() == "x86_64" else ""
    names = {"bfloat16": "avx512_bf16|amx_bf16", "int8": "avx512_vnni|avx_vnni|amx_int8"}
    there = {dtype for dtype, flags in names.items() if re.search(rf"\b({flags})\b", told)}
    assert set(quick_dtypes()) == there
