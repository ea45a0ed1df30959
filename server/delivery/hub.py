"""A whole model folder from the Hugging Face hub, at one revision; serving never does this.

A mirror (`HF_ENDPOINT`), a proxy (`HTTPS_PROXY`) and a token (`HF_TOKEN`) are what the hub's own
client makes of these variables. What was fetched before an interruption is not fetched again.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from server.delivery.locking import hold, remove
from server.errors import ModelFileError, first_line
from server.program.termination import ending_at_once

# What an import reads; not the same weights once more for other frameworks.
_WANTED = ("*.json", "*.safetensors", "README.md")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
# ORGANISATION--NAME--COMMIT: what a download's folder is called.
_FOLDER = re.compile(rf"[\w.\-]+--[\w.\-]+--{_COMMIT.pattern}", re.ASCII)
_PUBLISHED_GRAPH = ("onnx/model.onnx", "onnx/model.onnx_data*")


@contextlib.contextmanager
def downloaded(
    repository: str,
    revision: str | None,
    into: Path,
    report: Callable[[str], None],
    *,
    with_graph: bool,
) -> Iterator[tuple[Path, str]]:
    """Fetch what an import needs; it is removed afterwards, but kept after an error.

    Args:
        revision: a commit, tag or branch; None is the newest commit.
        into: where unfinished downloads lie; each has a folder of its own.
        with_graph: the publisher's ONNX graph, too; without safetensors it is fetched anyway.

    Yields:
        The folder, and the commit that it holds.

    Raises:
        ModelFileError: the hub is out of reach, has no such model or revision, or answers what it
            should not; or another process fetches the same.
    """
    commit, with_weights = _look_up(repository, revision)
    folder = into / f"{repository.replace('/', '--')}--{commit}"
    try:
        lock = hold(folder)
    except OSError as error:
        raise ModelFileError(f"{folder}: {error.strerror}") from error
    if lock is None:
        raise ModelFileError(f"{repository}: another process is fetching it into {folder}")
    with lock:
        report(f"fetching {repository}@{commit[:12]} from the Hugging Face hub")
        patterns = (*_WANTED, *(_PUBLISHED_GRAPH if with_graph or not with_weights else ()))
        _fetch(repository, commit, folder, patterns)
        yield folder, commit
        remove(folder)


def kept_downloads(into: Path) -> list[Path]:
    """What is called as a download is, in use or not.

    Args:
        into: as for `downloaded`; need not be there.

    Raises:
        OSError: the folder cannot be read.
    """
    if not into.is_dir():
        return []
    return sorted(path for path in into.iterdir() if _FOLDER.fullmatch(path.name))


def not_fetched(what: str, error: Exception) -> str:
    """Why the hub's client did not fetch something, from which host, and how to name another."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
    status = getattr(getattr(error, "response", None), "status_code", None)
    hint = "; if the model is gated or private, set HF_TOKEN" if status in (401, 403) else ""
    cause: BaseException = error
    while status is None and cause.__cause__ is not None:  # what the network itself said
        cause = cause.__cause__
    reason = first_line(cause)
    return f"{what}: not fetched from {host} (HF_ENDPOINT names another hub): {reason}{hint}"


def _look_up(repository: str, revision: str | None) -> tuple[str, bool]:
    """The commit that a revision is, and whether it has weights in safetensors."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi  # slow to import, wanted only here

    try:
        told = HfApi().model_info(repository, revision=revision)
    except Exception as error:  # the hub client raises many unrelated classes
        raise ModelFileError(not_fetched(repository, error)) from error
    commit, files = told.sha, [file.rfilename for file in told.siblings or ()]
    # The folder is called by the commit, and removed afterwards.
    if commit is None or not _COMMIT.fullmatch(commit):
        raise ModelFileError(f"{repository}: the hub names no commit, but {commit!r}")
    outside = [name for name in files if name.startswith("/") or ".." in name.split("/")]
    if outside:
        raise ModelFileError(
            f"{repository}: the hub names a file outside the repository, {outside[0]!r}"
        )
    return commit, any(name.endswith(".safetensors") for name in files)


def _fetch(repository: str, commit: str, folder: Path, patterns: tuple[str, ...]) -> None:
    from huggingface_hub import snapshot_download

    try:
        with ending_at_once():  # it downloads in threads; what has come is gone on with
            snapshot_download(
                repository, revision=commit, local_dir=folder, allow_patterns=list(patterns)
            )
    except Exception as error:  # as above
        raise ModelFileError(not_fetched(repository, error)) from error
