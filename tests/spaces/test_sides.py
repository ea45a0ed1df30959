from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.errors import EmbeddingServerError, SettingError
from server.settings import Settings
from server.spaces.local_model import LocalModel
from server.spaces.side import Asked
from server.spaces.sides import open_side, read_key
from tests.conftest import MATRYOSHKA, PLAIN
from tests.spaces.conftest import Scripted, embeddings

KEY = "sk-0123456789abcdefghij"
SETTINGS = Settings(device="cpu")


@pytest.mark.parametrize("path", ["/v1", "/v1/", "", "/"])
def test_a_servers_address_may_end_with_v1_or_not(scripted: Scripted, path: str) -> None:
    scripted.then(200, embeddings([np.ones(2, np.float32)]))
    given = f"{scripted.url.removesuffix('/v1')}{path}#organisation/m"
    assert open_side(given, SETTINGS, Asked(), None, "--key-a").given == given
    ((asked_path, headers, body),) = scripted.asked
    assert (asked_path, body["model"]) == ("/v1/embeddings", "organisation/m")
    assert "Authorization" not in headers


def test_a_key_comes_from_a_variable_or_a_file(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OUR_KEY", KEY)
    (tmp_path / "key").write_text(f"{KEY}\n")
    scripted.then(200, embeddings([np.ones(2, np.float32)]))
    for where in ("env:OUR_KEY", f"file:{tmp_path / 'key'}"):
        open_side(f"{scripted.url}#m", SETTINGS, Asked(), where, "--key-a")
    assert [headers["Authorization"] for _, headers, _ in scripted.asked] == 2 * [f"Bearer {KEY}"]


@pytest.mark.parametrize("content", ["", "two words", "zwei\nzeilen", "schlüssel"])
def test_what_is_no_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    monkeypatch.setenv("OUR_KEY", content)
    (tmp_path / "key").write_text(content)
    for where in ("env:OUR_KEY", f"file:{tmp_path / 'key'}", "env:NOT_THERE", "file:/not/there"):
        with pytest.raises(SettingError, match=where.partition(":")[2]) as caught:
            read_key(where, "--key-a")
        assert not content or content not in caught.value.message


def test_a_key_on_the_command_line_is_refused_and_not_said_again() -> None:
    with pytest.raises(SettingError, match="--key-b: must be env:NAME") as caught:
        read_key(KEY, "--key-b")
    assert KEY not in caught.value.message


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("http://127.0.0.1:1", "name the server's model"),
        ("http://127.0.0.1:1#", "name the server's model"),
        ("ftp://127.0.0.1#m", "must be http://HOST:PORT#MODEL"),
        ("http://#m", "must be http://HOST:PORT#MODEL"),
        ("http://127.0.0.1:99999#m", "must be http://HOST:PORT#MODEL"),
        ("http://127.0.0.1:x#m", "must be http://HOST:PORT#MODEL"),
        ("http://[::1#m", "must be http://HOST:PORT#MODEL"),
        ("http://user:secret@127.0.0.1:1#m", "without a user's name"),
        ("http://127.0.0.1:1?key=secret#m", "without a user's name"),
        ("http://user:sec?secret@127.0.0.1:1#m", "the server's address: must be"),
        ("http://user:secret?word@127.0.0.1:1#m", "the server's address: must be"),
        ("http://127.0.0.1:1/a b#m", "must be http://HOST:PORT#MODEL"),
        ("http://127.0.0.1:1/ü#m", "must be http://HOST:PORT#MODEL"),
        ("http://a..b:1#m", "http://a..b:1/v1/embeddings: "),
        ("", "must begin with a model's name"),
        ("@float32", "must begin with a model's name"),
        (f"{PLAIN}@float16", f"{PLAIN}@float16: setting dtype"),
        (f"{PLAIN}@half", "'half' is neither a device"),
        (f"{PLAIN}@cuda:x@float16", "'cuda:x' is neither a device"),
        (f"{PLAIN}@", "'' is neither a device"),
        (f"{PLAIN}@float32@float32", "more than one dtype"),
        (f"{PLAIN}@cpu@cpu", "more than one device"),
        ("no-such-model", "no-such-model: model no-such-model not found"),
    ],
)
def test_what_is_no_side_is_named(given: str, told: str) -> None:
    with pytest.raises(EmbeddingServerError) as caught:
        open_side(given, SETTINGS, Asked(), None, "--key-a")
    assert told in caught.value.message
    assert "secret" not in caught.value.message


def test_a_model_of_this_machine_wants_no_key() -> None:
    with pytest.raises(SettingError, match=r"--key-a: .* wants no key"):
        open_side(PLAIN, SETTINGS, Asked(), "env:X", "--key-a")


@pytest.mark.parametrize(
    "given", [MATRYOSHKA, f"{MATRYOSHKA}@float32", f"{MATRYOSHKA}@cpu@float32", f"{MATRYOSHKA}@cpu"]
)
def test_a_model_of_this_machine_may_have_a_device_and_a_dtype(given: str) -> None:
    side = open_side(given, SETTINGS, Asked(), None, "--key-a")
    assert isinstance(side, LocalModel)
    assert side.given == given


def test_settings_that_were_checked_are_not_checked_once_more() -> None:
    settings = SETTINGS.model_copy(update={"port": -1})
    assert open_side(PLAIN, settings, Asked(), None, "--key-a").given == PLAIN
