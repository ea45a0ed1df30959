"""What the images are made of, without making one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_the_stage_of_the_models_copies_all_that_pull_imports(name: str, tmp_path: Path) -> None:
    dockerfile = (REPOSITORY / name).read_text()
    (stage,) = re.findall(r"^FROM \S+ AS models$(.*?)^FROM ", dockerfile, re.DOTALL | re.MULTILINE)
    copied = re.findall(r"^COPY (.*) (\S+)$", stage, re.MULTILINE)
    assert len(copied) == 6
    for sources, target in copied:
        place = tmp_path / target.lstrip("/")
        for path in REPOSITORY.glob(sources):
            if path.is_dir():
                shutil.copytree(path, place)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)
    # The files are there, so that it only compares them.
    pulled = subprocess.run(
        [sys.executable, "-m", "server", "models", "pull", "--models-dir", tmp_path / "models"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PYTHONSAFEPATH": "", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert pulled.returncode == 0, pulled.stderr
    assert "all-MiniLM-L6-v2: " in pulled.stdout


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_the_image_holds_the_papers_of_what_is_installed_and_neither_wheels_nor_tools(
    name: str,
) -> None:
    stages = re.split(r"^FROM ", (REPOSITORY / name).read_text(), flags=re.MULTILINE)
    by_name = {stage.partition("\n")[0].rpartition(" AS ")[2]: stage for stage in stages[1:-1]}
    installed = "pip --python /opt/embedding-server/bin/python install --no-compile"
    fetched, used = by_name["dependencies"].split(installed)
    assert "pip wheel --wheel-dir /wheels" in fetched
    assert used.lstrip(" \\\n").startswith("--no-index --find-links /wheels")
    papers = by_name["papers"]
    assert "COPY --from=server /build/dist /wheels\nCOPY --from=models /models /models" in papers
    assert "bundle papers --models-dir /models" in papers
    copied = re.findall(r"^COPY --from=(\w+) (\S+) (\S+)$", stages[-1], re.MULTILINE)
    assert ("papers", "/papers", "/licenses/") in copied
    assert {source for _, source, _ in copied} == {
        *("/opt/embedding-server", "/models", "/overlay", "/papers")
    }
