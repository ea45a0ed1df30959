"""The commands in messages: pasted into a shell, in any folder, they do what the message says."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from server.program import command_lines
from server.program.command_lines import install_command, is_checkout, own_command
from tests.conftest import REPOSITORY

PIP = [sys.executable, "-m", "pip", "install"]


def pasted(command: str, folder: Path, path: str) -> str:
    """What a shell in this folder, with this PATH, prints."""
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_the_own_command_runs_from_any_folder_though_no_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    command = own_command("--version")
    assert command == shlex.join(
        [str(Path(sys.executable).parent / "embedding-server"), "--version"]
    )
    assert pasted(command, tmp_path, "/usr/bin:/bin").startswith("embedding-server ")


def test_the_own_command_is_a_plain_name_where_a_shell_finds_just_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin")
    assert own_command("models", "pull", "a b") == "embedding-server models pull 'a b'"
    another = tmp_path / "embedding-server"
    another.write_text("#!/bin/sh\n")
    another.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}")
    assert own_command("serve") == shlex.join(
        [str(Path(sys.executable).parent / "embedding-server"), "serve"]
    )


def test_without_its_script_the_own_command_is_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    assert own_command("doctor") == f"{tmp_path / 'python3'} -m server doctor"


def test_a_checkout_is_installed_again_with_the_extra() -> None:
    assert is_checkout()
    constraints = REPOSITORY / "constraints.txt"
    assert shlex.split(install_command("torch")) == [
        *PIP,
        *("--editable", f"{REPOSITORY}[torch]", "--constraint", str(constraints)),
    ]


def test_what_came_from_a_wheel_gets_the_packages_that_only_the_extra_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    lines = ["Metadata-Version: 2.4", "Name: embedding-server", "Version: 9"]
    lines += [f"Requires-Dist: {needed}" for needed in project["dependencies"]]
    for extra, needs in project["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}"]
        lines += [f"Requires-Dist: {needed}; extra == '{extra}'" for needed in needs]
    metadata = tmp_path / "embedding_server-9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("\n".join(lines), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(command_lines, "CHECKOUT", tmp_path)
    for extra, needs in project["optional-dependencies"].items():
        assert shlex.split(install_command(extra)) == [*PIP, *(str(Requirement(n)) for n in needs)]


def test_an_environment_without_pip_is_given_to_another_pip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PathFinder, "find_spec", lambda name: None)
    assert shlex.split(install_command("plot"))[:4] == [
        "pip",
        "--python",
        sys.executable,
        "install",
    ]
