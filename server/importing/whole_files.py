"""Files that are not what their names say: what a clone, a copy or a download left in their place.

Only the first bytes of a file are read, and a header. Pure functions of files; any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from server.catalog.card import TOKENIZER_FILE
from server.errors import ImportRefused
from server.importing.folder import (
    CONFIG_FILE,
    SENTENCE_BERT_FILES,
    TOKENIZER_CONFIG_FILE,
)
from server.importing.head import MODULES_FILE, WEIGHTS_FILE
from server.importing.json_files import read_json
from server.importing.prompts import PROMPTS_FILE
from server.importing.weight_files import INDEX_FILE
from server.inference.safetensors_header import NotSafetensors, read_header

ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
# What an import reads at a folder's top and in the folders of its modules.
_READ = (
    CONFIG_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    MODULES_FILE,
    *SENTENCE_BERT_FILES,
    PROMPTS_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    ADAPTER_WEIGHTS_FILE,
)
_MODULE_FOLDERS = "[0-9]*_*"
_SHARD = re.compile(r"[^/]+-\d{5}-of-\d{5}\.safetensors")

_LOOKED_AT_BYTES = 512
_LFS = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)
# What the hub answers instead of a file; `curl` and `wget` save it under the file's name.
_HUB_ANSWER = re.compile(
    rb"(Entry not found|Repository not found|Revision not found|Access to model|Invalid username|"
    rb'Unauthorized|Invalid credentials|\{"error":)'
)


def refuse_broken_files(path: Path) -> None:
    """Look at each file of a folder that an import would read.

    Raises:
        ImportRefused: one of them is not whole, or is another thing; says what to do.
    """
    for folder in (path, *sorted(path.glob(_MODULE_FOLDERS))):
        for name in _READ:
            refuse_broken_file(folder / name)
        shards = [file for file in sorted(folder.glob("*.safetensors")) if _is_shard(file.name)]
        for file in shards:
            refuse_broken_file(file)
        _refuse_missing_shards(folder, [file.name for file in shards])


def refuse_broken_file(file: Path) -> None:
    """Look at one file; a missing one is nothing to say here. See `refuse_broken_files`."""
    if file.is_symlink() and not file.exists():
        raise ImportRefused(
            f"{file}: No such file or directory: it is a link to {file.readlink()}; copy the folder "
            "with what its links point to (cp -rL), or fetch it again"
        )
    if not file.is_file():  # also a named pipe, which would never end
        return
    try:
        with file.open("rb") as opened:
            start = opened.read(_LOOKED_AT_BYTES)
    except OSError as error:
        raise ImportRefused(f"{file}: {error.strerror}") from None
    if not start:
        raise ImportRefused(f"{file}: is empty: the download was not finished; fetch it again")
    if start.startswith(_LFS):
        raise ImportRefused(
            f"{file}: is a Git LFS pointer, not the file itself; run `git lfs pull` in {file.parent}"
        )
    if _WEB_PAGE.match(start):
        raise ImportRefused(
            f"{file}: is a web page, not the file itself: the download failed; fetch it again"
        )
    if _HUB_ANSWER.match(start):
        said = start.decode(errors="replace").splitlines()[0][:80]
        raise ImportRefused(
            f"{file}: is an error message of the hub, not the file itself ({said}); fetch it again"
        )
    if file.suffix == ".safetensors":
        try:
            read_header(file)
        except NotSafetensors as error:
            raise ImportRefused(
                f"{error}; it is damaged, or its download was not finished: fetch it again"
            ) from None


def _is_shard(name: str) -> bool:
    return _SHARD.fullmatch(name) is not None


def _refuse_missing_shards(path: Path, shards: Sequence[str]) -> None:
    if not (path / INDEX_FILE).is_file():
        if shards and not (path / WEIGHTS_FILE).exists():
            raise ImportRefused(
                f"{path}: has {shards[0]}, but no {INDEX_FILE}, which names all the files of the "
                "weights; fetch it, too"
            )
        return
    named = read_json(path / INDEX_FILE).get("weight_map")
    wanted = {str(name) for name in named.values()} if isinstance(named, dict) else set()
    missing = sorted(name for name in wanted if _is_shard(name) and not (path / name).is_file())
    if missing:
        raise ImportRefused(
            f"{path}: {len(missing)} of the {len(wanted)} files of weights that {INDEX_FILE} names "
            f"are missing: {', '.join(missing)}; fetch them, too"
        )
