"""The server starts and answers where there is no network but loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests.conftest import MATRYOSHKA, REPOSITORY

# Runs inside a network namespace of its own; prints what it saw as JSON.
SCRIPT = """
import json, os, pathlib, socket, subprocess, tempfile, time
import httpx
from tests.server_process import ServerProcess

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
home = tempfile.mkdtemp()
os.environ["HOME"] = home
for name in ("CI", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"):  # ONNX Runtime is quiet in CI
    os.environ.pop(name, None)

def out_of_reach():
    rows = [l.split() for l in pathlib.Path("/proc/net/snmp").read_text().splitlines()
            if l.startswith("Ip:")]
    return int(dict(zip(*rows))["OutNoRoutes"])

try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
    isolated = False
except OSError:
    isolated = True
before = out_of_reach()
with ServerProcess() as server:
    body = {"model": "text-embedding-3-small", "input": [[9906], [1917]]}
    answer = httpx.post(server.base_url + "/embeddings", json=body).json()
    time.sleep(3)  # telemetry is sent in the background
    code = server.stop()
print(json.dumps({"isolated": isolated, "model": answer["model"], "tried": out_of_reach() - before,
                  "vectors": len(answer["data"]), "code": code, "left_at_home": os.listdir(home)}))
"""


def namespace_command() -> list[str]:
    """How to run Python without any network but loopback; skips where nobody may (never in CI)."""
    command = ["unshare", "--net", "--map-root-user"]
    allowed = (
        shutil.which("unshare") and not subprocess.run([*command, "true"], check=False).returncode
    )
    if not allowed and "CI" not in os.environ:
        pytest.skip("this machine allows no network namespaces")
    return [*command, sys.executable]


@pytest.mark.server
def test_it_serves_inside_a_namespace_with_loopback_only_and_never_tries_to_leave() -> None:
    command = [*namespace_command(), "-c", textwrap.dedent(SCRIPT)]
    outcome = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout) == {
        "isolated": True,
        "model": MATRYOSHKA,
        "vectors": 2,
        "tried": 0,
        "code": 0,
        "left_at_home": [],
    }


def test_a_cpu_server_loads_no_torch() -> None:
    """Everything the server imports, also lazily, leaves torch and transformers alone."""
    program = textwrap.dedent(
        """
        import asyncio, sys
        import server.commands.cli, server.http.serving
        from server.http.app import create_app
        from server.settings import Settings
        app = create_app(Settings())
        services = app.state.services
        asyncio.run(services.models.load(services.metrics))
        print([name for name in ("torch", "transformers", "sentence_transformers", "onnx")
               if name in sys.modules])
        """
    )
    outcome = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert outcome.stdout.strip() == "[]"
