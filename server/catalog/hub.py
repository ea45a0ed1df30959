"""A whole model folder from the Hugging Face hub, at one revision; serving never does this.

A mirror (`HF_ENDPOINT`), a proxy (`HTTPS_PROXY`) and a token (`HF_TOKEN`) are what the hub's own
client makes of these variables. What was fetched before an interruption is not fetched again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from server.errors import ModelFileError

# What an import reads; not the same weights once more for other frameworks.
_WANTED = ("*.json", "*.safetensors", "README.md")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_PUBLISHED_GRAPH = ("onnx/model.onnx", "onnx/model.onnx_data*")


def download_folder(
    repository: str,
    revision: str | None,
    into: Path,
    report: Callable[[str], None],
    *,
    with_graph: bool,
) -> tuple[Path, str]:
    """Fetch what an import needs.

    Args:
        revision: a commit, tag or branch; None is the newest commit.
        into: where unfinished downloads lie; each has a folder of its own.
        with_graph: the publisher's ONNX graph, too; without safetensors it is fetched anyway.

    Returns:
        The folder, and the commit that it holds.

    Raises:
        ModelFileError: the hub is out of reach, has no such model or revision, or answers what it
            should not.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, snapshot_download  # slow to import, wanted only here

    try:
        told = HfApi().model_info(repository, revision=revision)
        commit, files = told.sha, [file.rfilename for file in told.siblings or ()]
        # The folder is called by the commit, and removed afterwards.
        if commit is None or not _COMMIT.fullmatch(commit):
            raise ValueError(f"the hub names no commit, but {commit!r}")
        outside = [name for name in files if name.startswith("/") or ".." in name.split("/")]
        if outside:
            raise ValueError(f"the hub names a file outside the repository, {outside[0]!r}")
        with_graph = with_graph or not any(name.endswith(".safetensors") for name in files)
        report(f"fetching {repository}@{commit[:12]} from the Hugging Face hub")
        folder = into / f"{repository.replace('/', '--')}--{commit}"
        snapshot_download(
            repository,
            revision=commit,
            local_dir=folder,
            allow_patterns=[*_WANTED, *(_PUBLISHED_GRAPH if with_graph else ())],
        )
    except Exception as error:  # the hub client raises many unrelated classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "; if the model is gated or private, set HF_TOKEN" if status in (401, 403) else ""
        raise ModelFileError(f"{repository}: {reason}{hint}") from error
    return folder, commit
