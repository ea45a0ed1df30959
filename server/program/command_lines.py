"""Commands that messages tell a person to paste: they run as they are, however this was installed.

Knows nothing of what the commands do.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

DISTRIBUTION: Final = "embedding-server"
# The folder of pyproject.toml if this is a source checkout; it means nothing otherwise.
CHECKOUT: Final = Path(__file__).resolve().parents[2]


def is_checkout() -> bool:
    """Whether this software runs from its source, as after `make install`."""
    return all((CHECKOUT / file).is_file() for file in ("pyproject.toml", "constraints.txt"))


def has_pip() -> bool:
    """Whether this Python environment has a pip of its own."""
    # Not importlib's find_spec: setuptools takes that for pip starting, leaves distutils to Python
    # from then on, and with that torch can compile nothing in this process.
    return PathFinder.find_spec("pip") is not None


def own_command(*arguments: str) -> str:
    """The software's own command with these arguments, by its path unless a shell finds it anyway."""
    script = Path(sys.executable).parent / DISTRIBUTION
    on_path = shutil.which(DISTRIBUTION)
    if not script.is_file():
        program = [sys.executable, "-m", "server"]
    elif on_path is not None and Path(on_path).samefile(script):
        program = [DISTRIBUTION]
    else:
        program = [str(script)]
    return shlex.join([*program, *arguments])


def install_command(extra: str) -> str:
    """The command that brings the packages of one of this software's extras.

    It does not name this distribution: no package index has it.
    """
    if is_checkout():
        constraints = CHECKOUT / "constraints.txt"
        wanted = ["--editable", f"{CHECKOUT}[{extra}]", "--constraint", str(constraints)]
    else:
        wanted = _requirements(extra)
    pip = [sys.executable, "-m", "pip"] if has_pip() else ["pip", "--python", sys.executable]
    return shlex.join([*pip, "install", *wanted])


def _requirements(extra: str) -> list[str]:
    """What only this extra needs, as the installed distribution says."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, requires(DISTRIBUTION) or []):
        marker, requirement.marker = requirement.marker, None
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            found.append(str(requirement))
    return found
