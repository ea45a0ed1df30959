"""A repository of the hub is imported as a folder is; what it does not say, a flag says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing import from_hub
from server.settings import Settings
from tests.importing.folders import make_folder


@pytest.mark.usefixtures("exports")
def test_a_repository_that_does_not_say_its_pooling_is_refused_until_a_flag_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "org--own--0123", normalize=False)
    (folder / "modules.json").unlink()

    @contextlib.contextmanager
    def downloaded(*_: object, **__: object) -> Iterator[tuple[Path, str]]:
        yield folder, "c" * 40

    monkeypatch.setattr(from_hub, "downloaded", downloaded)
    settings = Settings(data_dir=tmp_path / "data")
    lines: list[str] = []
    flags = "--pooling mean, cls or last_token and --normalize or --no-normalize"
    with pytest.raises(ImportRefused, match=flags):
        from_hub.import_from_hub(settings, "org/own", None, None, lines.append)
    card = from_hub.import_from_hub(
        settings, "org/own", None, None, lines.append, pooling="cls", normalize=True
    )
    assert (card.name, card.pooling, card.normalize) == ("own", "cls", True)
    assert "normalize: yes (--normalize)" in lines
