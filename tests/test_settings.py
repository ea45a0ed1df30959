from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from server.access.access import Access
from server.errors import SettingError
from server.settings import (
    ENV_PREFIX,
    Settings,
    default_models_dir,
    load_settings,
    unknown_environment_variables,
)

SECRET = "sk-do-not-print-me"


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


def toml(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


class TestPrecedence:
    def test_without_any_source_the_defaults_hold(self) -> None:
        settings = load_settings()
        assert settings == Settings()
        assert (settings.host, settings.port) == ("127.0.0.1", 8000)
        assert settings.api_key == []

    @pytest.mark.parametrize(
        ("in_file", "in_environment", "in_flags", "winner"),
        [
            (True, False, False, 3001),
            (False, True, False, 3002),
            (True, True, False, 3002),
            (False, False, True, 3003),
            (True, False, True, 3003),
            (False, True, True, 3003),
            (True, True, True, 3003),
        ],
    )
    def test_flags_win_over_environment_over_file_over_default(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        in_file: bool,
        in_environment: bool,
        in_flags: bool,
        winner: int,
    ) -> None:
        if in_environment:
            monkeypatch.setenv("EMBEDDING_SERVER_PORT", "3002")
        config = toml(tmp_path, "port = 3001") if in_file else None
        flags = {"port": "3003"} if in_flags else {}
        assert load_settings(flags, config).port == winner

    def test_each_setting_comes_from_its_own_source(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_THREADS", "2")
        settings = load_settings({"host": "::1"}, toml(tmp_path, "port = 3001"))
        assert (settings.host, settings.threads, settings.port) == ("::1", 2, 3001)
        assert settings.log_level == "info"

    def test_a_list_replaces_the_list_of_a_weaker_source(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_MODEL", "from-environment")
        config = toml(tmp_path, 'model = ["from-file"]')
        assert load_settings({}, config).model == ["from-environment"]

    def test_constructing_settings_reads_no_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_PORT", "3002")
        assert Settings().port == 8000


class TestReading:
    def test_a_list_in_the_environment_is_written_with_commas(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_MODEL", " one, org/two ,,three,")
        monkeypatch.setenv("EMBEDDING_SERVER_API_KEY", "sk-1,sk-2")
        monkeypatch.setenv("EMBEDDING_SERVER_MODEL_TOKEN_IDS", "one")
        settings = load_settings()
        assert settings.model == ["one", "org/two", "three"]
        assert settings.secrets() == ["sk-1", "sk-2"]
        assert settings.model_token_ids == ["one"]

    def test_every_type_can_be_written_in_the_toml_file(self, tmp_path: Path) -> None:
        config = toml(
            tmp_path,
            f"""
            host = "::1"
            model = ["one", "two"]
            models_dir = "{tmp_path}"
            api_key = ["sk-1"]
            allow_no_keys = true
            threads = 3
            drain_timeout_s = 2.5
            """,
        )
        settings = load_settings(config=config)
        assert settings.host == "::1"
        assert settings.model == ["one", "two"]
        assert settings.models_dir == tmp_path
        assert settings.secrets() == ["sk-1"]
        assert settings.allow_no_keys is True
        assert settings.threads == 3
        assert settings.drain_timeout_s == 2.5

    def test_settings_cannot_be_changed_later(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            load_settings().port = 1  # type: ignore[misc]

    def test_the_default_models_folder_is_the_checkouts(self) -> None:
        assert default_models_dir() == Path(__file__).parent.parent / "models"

    def test_every_setting_has_a_description(self) -> None:
        undescribed = [
            name for name, field in Settings.model_fields.items() if not field.description
        ]
        assert undescribed == []

    def test_every_default_is_within_its_own_bounds(self) -> None:
        defaults = Settings().model_dump()
        assert Settings(**defaults).model_dump() == defaults


BAD_VALUES = [
    ("port", "http"),
    ("port", "-1"),
    ("port", "65536"),
    ("threads", "0"),
    ("threads", "1025"),
    ("threads", "two"),
    ("frontends", "0"),
    ("frontends", "65"),
    ("max_batch_tokens", "0"),
    ("max_request_tokens", "0"),
    ("max_body_bytes", "1023"),
    ("drain_timeout_s", "-1"),
    ("drain_timeout_s", "nan"),
    ("drain_timeout_s", "inf"),
    ("keep_alive_timeout_s", "0"),
    ("lazy", "perhaps"),
    ("unload_after_s", "0"),
    ("unload_after_s", "nan"),
    ("unload_after_s", "60"),  # without lazy
    ("allow_no_keys", "perhaps"),
    ("log_level", "loud"),
]


class TestMistakes:
    def test_a_model_that_could_not_come_back_must_not_go(self) -> None:
        with pytest.raises(SettingError, match=r"unload_after_s .*: needs lazy"):
            load_settings({"lazy": False, "unload_after_s": "60"})
        assert load_settings({"lazy": True, "unload_after_s": "60"}).unload_after_s == 60

    @pytest.mark.parametrize(("name", "value"), BAD_VALUES)
    def test_a_bad_flag_is_named(self, name: str, value: str) -> None:
        with pytest.raises(SettingError) as caught:
            load_settings({name: value})
        assert f"setting {name} (--{name.replace('_', '-')}): " in caught.value.message

    @pytest.mark.parametrize(("name", "value"), BAD_VALUES)
    def test_a_bad_environment_variable_is_named(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(ENV_PREFIX + name.upper(), value)
        with pytest.raises(SettingError) as caught:
            load_settings()
        assert f"setting {name} (EMBEDDING_SERVER_{name.upper()}): " in caught.value.message

    @pytest.mark.parametrize(("name", "value"), BAD_VALUES)
    def test_a_bad_value_in_the_file_is_named_with_the_file(
        self, name: str, value: str, tmp_path: Path
    ) -> None:
        config = toml(tmp_path, f"{name} = {json.dumps(value)}")
        with pytest.raises(SettingError) as caught:
            load_settings(config=config)
        assert f"setting {name} ({config}): " in caught.value.message

    def test_the_source_named_is_the_one_whose_value_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_PORT", "http")
        with pytest.raises(SettingError, match="EMBEDDING_SERVER_PORT"):
            load_settings({}, toml(tmp_path, "port = 3001"))

    def test_a_bad_value_that_a_stronger_source_replaces_does_no_harm(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_PORT", "http")
        assert load_settings({"port": "3003"}).port == 3003

    def test_an_unknown_name_in_the_file_is_refused_with_the_nearest_one(
        self, tmp_path: Path
    ) -> None:
        config = toml(tmp_path, "prot = 3001")
        with pytest.raises(SettingError) as caught:
            load_settings(config=config)
        message = caught.value.message
        assert message == (f"configuration file {config}: unknown setting prot; did you mean port?")

    def test_an_unknown_name_that_resembles_nothing_is_refused_without_a_guess(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(SettingError, match=r"unknown setting zzzzzz$"):
            load_settings(config=toml(tmp_path, "zzzzzz = 1"))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"port = \n", "line 1"),
            (b"port 3001", "line 1"),
            (b"host = '\xff'", "utf-8"),
        ],
    )
    def test_a_file_that_is_not_toml_is_refused_by_its_path(
        self, tmp_path: Path, content: bytes, reason: str
    ) -> None:
        config = tmp_path / "settings.toml"
        config.write_bytes(content)
        with pytest.raises(SettingError) as caught:
            load_settings(config=config)
        assert str(config) in caught.value.message
        assert reason in caught.value.message

    def test_a_configuration_file_that_is_absent_is_refused_by_its_path(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(SettingError) as caught:
            load_settings(config=tmp_path / "absent.toml")
        assert caught.value.message == (
            f"configuration file {tmp_path / 'absent.toml'} does not exist"
        )

    def test_environment_variables_that_name_no_setting_are_found(self) -> None:
        environ = {
            "EMBEDDING_SERVER_PROT": "1",
            "EMBEDDING_SERVER_PORT": "1",
            "EMBEDDING_SERVER_CONFIG": "settings.toml",
            "EMBEDDING_SERVER_API_KEYS": "sk-1",
            "PROT": "1",
        }
        assert unknown_environment_variables(environ) == [
            "EMBEDDING_SERVER_API_KEYS",
            "EMBEDDING_SERVER_PROT",
        ]

    def test_no_setting_is_taken_for_an_unknown_environment_variable(self) -> None:
        environ = {ENV_PREFIX + name.upper(): "" for name in Settings.model_fields}
        assert unknown_environment_variables(environ) == []


class TestSecrets:
    def test_keys_of_flags_and_file_count_together(self, tmp_path: Path) -> None:
        keys = tmp_path / "keys"
        keys.write_text("# the team's\nsk-file-1\n\n   \n  sk-file-2  \n# sk-old\n")
        settings = load_settings({"api_key": ["sk-flag"], "api_key_file": str(keys)})
        assert settings.secrets() == ["sk-flag", "sk-file-1", "sk-file-2"]

    def test_without_keys_there_are_none(self) -> None:
        assert load_settings().secrets() == []

    def test_a_key_file_that_is_absent_is_refused_by_its_path(self, tmp_path: Path) -> None:
        settings = load_settings({"api_key_file": str(tmp_path / "keys")})
        with pytest.raises(SettingError) as caught:
            settings.secrets()
        assert caught.value.message == f"api_key_file {tmp_path / 'keys'} does not exist"

    @pytest.mark.parametrize("content", ["", "\n\n", "# nothing but a comment\n"])
    def test_a_key_file_without_a_key_is_refused(self, tmp_path: Path, content: str) -> None:
        # Otherwise a file emptied by accident would open the server to everybody.
        keys = tmp_path / "keys"
        keys.write_text(content)
        settings = load_settings({"api_key": [SECRET], "api_key_file": str(keys)})
        with pytest.raises(SettingError, match="holds no key"):
            settings.secrets()

    def test_a_key_file_that_is_not_text_is_refused_by_its_path(self, tmp_path: Path) -> None:
        keys = tmp_path / "keys"
        keys.write_bytes(b"\xff\xfe\x00")
        settings = load_settings({"api_key_file": str(keys)})
        with pytest.raises(SettingError) as caught:
            settings.secrets()
        assert str(keys) in caught.value.message

    @pytest.mark.parametrize(
        "unusable", ["", f"{SECRET} x", f"{SECRET}\t", f"{SECRET}\n", f"{SECRET}é", f"{SECRET}\x7f"]
    )
    def test_a_key_that_cannot_travel_in_a_header_is_refused_by_number_not_by_value(
        self, unusable: str
    ) -> None:
        settings = load_settings({"api_key": ["sk-fine", unusable]})
        with pytest.raises(SettingError, match="number 2 ") as caught:
            settings.secrets()
        assert SECRET not in caught.value.message

    def test_no_way_of_printing_settings_shows_a_key(self) -> None:
        settings = load_settings({"api_key": [SECRET]})
        printed = [
            repr(settings),
            str(settings),
            settings.model_dump_json(),
            str(settings.model_dump()),
            repr(vars(settings)),
        ]
        assert [text for text in printed if SECRET in text] == []

    @pytest.mark.parametrize(
        "written",
        [
            f'api_key = ["{SECRET}", 5]',
            f'api_key = {{ mine = "{SECRET}" }}',
            f'api_key = [["{SECRET}"]]',
            f'api_keys = ["{SECRET}"]',
            f'api_key = "{SECRET}',
        ],
    )
    def test_no_mistake_in_the_file_shows_a_key(self, tmp_path: Path, written: str) -> None:
        with pytest.raises(SettingError) as caught:
            load_settings(config=toml(tmp_path, written))
        assert "api_key" in caught.value.message or "settings.toml" in caught.value.message
        assert SECRET not in caught.value.message

    def test_a_numeric_key_in_the_file_is_refused_without_showing_it(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="setting api_key") as caught:
            load_settings(config=toml(tmp_path, "api_key = 9876543210"))
        assert "9876543210" not in caught.value.message


LOOPBACK = ["localhost", "127.0.0.1", "127.8.9.10", "::1", "0:0:0:0:0:0:0:1"]
BEYOND = [
    "",
    "0.0.0.0",
    "::",
    "192.168.1.5",
    "2001:db8::1",
    "embeddings.example.org",
    "localhost.example.org",
    "127.0.0.1.example.org",
]


def check_exposure(flags: dict[str, Any]) -> None:
    settings = load_settings(flags)
    settings.check_exposure(asks_for_keys=Access(settings).asks_for_keys)


class TestExposure:
    @pytest.mark.parametrize("host", LOOPBACK)
    def test_this_machine_alone_needs_no_key(self, host: str) -> None:
        check_exposure({"host": host})

    @pytest.mark.parametrize("host", BEYOND)
    def test_an_address_beyond_this_machine_is_refused_without_keys(self, host: str) -> None:
        with pytest.raises(SettingError) as caught:
            check_exposure({"host": host})
        message = caught.value.message
        assert f"listen on {host} " in message
        assert "--api-key" in message
        assert "--allow-no-keys" in message

    @pytest.mark.parametrize("host", BEYOND)
    def test_a_key_allows_any_address(self, host: str) -> None:
        check_exposure({"host": host, "api_key": ["sk-1"]})

    def test_a_key_file_allows_any_address(self, tmp_path: Path) -> None:
        keys = tmp_path / "keys"
        keys.write_text("sk-1\n")
        check_exposure({"host": "0.0.0.0", "api_key_file": str(keys)})

    @pytest.mark.parametrize("host", BEYOND)
    def test_saying_so_allows_any_address(self, host: str) -> None:
        check_exposure({"host": host, "allow_no_keys": True})


class TestHost:
    @pytest.mark.parametrize(
        ("given", "host"),
        [
            ("[::1]", "::1"),
            ("[::]", "::"),
            ("0::0", "::"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("10.0.0.1", "10.0.0.1"),
            ("node-1.example.org", "node-1.example.org"),
        ],
    )
    def test_an_address_may_stand_in_brackets(self, given: str, host: str) -> None:
        assert load_settings({"host": given}).host == host

    @pytest.mark.parametrize(
        ("given", "host"),
        [
            ("127.0.0.1:8233", "127.0.0.1"),
            ("localhost:8233", "localhost"),
            ("[::1]:8233", "::1"),
        ],
    )
    def test_a_port_behind_the_host_is_refused_with_the_flag_for_it(
        self, given: str, host: str
    ) -> None:
        with pytest.raises(SettingError) as caught:
            load_settings({"host": given})
        assert caught.value.message == (
            f"setting host (--host): holds a port as well: write {host} here, and the port in the "
            "setting port (--port 8233)"
        )

    @pytest.mark.parametrize("given", ["http://localhost", "http://localhost:80", ":80", "[a]"])
    def test_what_is_more_than_an_address_is_refused(self, given: str) -> None:
        with pytest.raises(SettingError, match=r"setting host \(--host\): must be one address"):
            load_settings({"host": given})

    def test_all_addresses_in_brackets_are_as_exposed_as_without(self) -> None:
        with pytest.raises(SettingError, match="refusing to listen on :: without API keys"):
            check_exposure({"host": "[::]"})


class TestByteOrderMark:
    """Some editors begin every file with one."""

    def test_a_configuration_file_may_begin_with_one(self, tmp_path: Path) -> None:
        config = toml(tmp_path, "\ufeffport = 3001")
        assert load_settings(config=config).port == 3001

    def test_a_key_file_may_begin_with_one(self, tmp_path: Path) -> None:
        keys = tmp_path / "keys"
        keys.write_text("\ufeffsk-file-1\nsk-file-2\n", encoding="utf-8")
        assert load_settings({"api_key_file": str(keys)}).secrets() == ["sk-file-1", "sk-file-2"]


def test_an_ipv4_loopback_in_ipv6s_form_is_this_machine() -> None:
    Settings(host="::ffff:127.0.0.1").check_exposure(asks_for_keys=False)
    with pytest.raises(SettingError, match="refusing to listen"):
        Settings(host="::ffff:10.0.0.1").check_exposure(asks_for_keys=False)


@pytest.mark.parametrize("port", ["-1", "65536", "on", "", "80.5"])
def test_a_port_of_the_metrics_is_a_port_or_off(port: str) -> None:
    with pytest.raises(SettingError, match=r"setting metrics_port \(--metrics-port\): "):
        load_settings({"metrics_port": port})
    assert load_settings({"metrics_port": "off"}).metrics_port == "off"
    assert load_settings({"metrics_port": "9464"}).metrics_address == ("127.0.0.1", 9464)


def test_an_address_of_the_metrics_needs_a_port_of_theirs() -> None:
    for flags in ({"metrics_host": "::1"}, {"metrics_host": "::1", "metrics_port": "off"}):
        with pytest.raises(SettingError, match=r"metrics_host .*needs metrics_port"):
            load_settings(flags)
    flags = {"metrics_host": "::1", "metrics_port": "1"}
    assert load_settings(flags).metrics_address == ("::1", 1)


def test_metrics_are_shown_beyond_this_machine_only_with_keys_or_with_leave() -> None:
    flags = {"metrics_host": "0.0.0.0", "metrics_port": "1"}
    with pytest.raises(SettingError, match=r"refusing to listen on 0\.0\.0\.0 without API keys"):
        load_settings(flags).check_exposure(asks_for_keys=False)
    load_settings(flags).check_exposure(asks_for_keys=True)
    for leave in ("allow_no_keys", "public_metrics"):
        load_settings({**flags, leave: True}).check_exposure(asks_for_keys=False)
