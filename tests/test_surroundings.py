"""What the command makes of where it runs: Kubernetes' variables, no home, folders that are missing."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from server.catalog.card_file import read_card
from server.commands.self_test import examine
from server.delivery.bundle_writer import Contents
from server.errors import CardError, DatabaseError, ImportRefused, SettingError
from server.http.app import create_app
from server.importing.places import check_free
from server.importing.plan import Wishes
from server.settings import (
    Settings,
    kubernetes_variables,
    load_settings,
    unknown_environment_variables,
)
from tests.catalog import card_table, write_card, write_model
from tests.command_line import Outcome, run, start
from tests.conftest import PLAIN


def assert_mistake(outcome: Outcome, line: str) -> None:
    """This one line on standard error, nothing else, and exit code 2."""
    assert outcome == Outcome(2, "", f"embedding-server: {line}\n")


# As the kubelet makes them; see "Discovering services" in Kubernetes' documentation.
OF_ONE_SERVICE = {
    "_SERVICE_HOST": "10.0.0.1",
    "_SERVICE_PORT": "8000",
    "_SERVICE_PORT_HTTP": "8000",
    "_SERVICE_PORT_API_KEY": "9000",
    "_PORT": "tcp://10.0.0.1:8000",
    "_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "_PORT_8000_TCP_PROTO": "tcp",
    "_PORT_8000_TCP_PORT": "8000",
    "_PORT_8000_TCP_ADDR": "10.0.0.1",
    "_PORT_53_UDP": "udp://10.0.0.1:53",
    "_PORT_53_UDP_PROTO": "udp",
    "_PORT_9_SCTP_ADDR": "10.0.0.1",
}
OF_ONE_SERVICE_IN_IPV6 = {
    "_SERVICE_HOST": "fd00:10:96::1f",
    "_PORT": "tcp://[fd00:10:96::1f]:8000",
    "_PORT_8000_TCP": "tcp://[fd00:10:96::1f]:8000",
    "_PORT_8000_TCP_ADDR": "fd00:10:96::1f",
}


class TestKubernetes:
    @pytest.mark.parametrize("service", ["", "_GPU", "_KEYS", "_API_KEY", "_2", "_CONFIG"])
    @pytest.mark.parametrize("made", [OF_ONE_SERVICE, OF_ONE_SERVICE_IN_IPV6], ids=["v4", "v6"])
    def test_what_it_makes_of_a_service_is_no_setting_and_no_mistake(
        self, monkeypatch: pytest.MonkeyPatch, service: str, made: dict[str, str]
    ) -> None:
        environ = {f"EMBEDDING_SERVER{service}{end}": value for end, value in made.items()}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert load_settings() == Settings()
        assert kubernetes_variables(environ) == sorted(environ)
        assert unknown_environment_variables(environ) == []

    def test_a_port_that_is_set_for_this_server_stays_a_setting(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_PORT", "8233")
        assert load_settings().port == 8233
        assert kubernetes_variables(os.environ) == []

    def test_a_weaker_source_gives_the_port_then(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_PORT", "tcp://10.0.0.1:8000")
        config = tmp_path / "settings.toml"
        config.write_text("port = 3001")
        assert load_settings({}, config).port == 3001

    @pytest.mark.parametrize(
        "variable",
        [
            "EMBEDDING_SERVER_PORT=tcp://10.0.0.1",
            "EMBEDDING_SERVER_PORT=http://10.0.0.1:8000",
            "EMBEDDING_SERVER_PORT=tcp://10.0.0.1:8000\n",
            "EMBEDDING_SERVER_API_KEY_PORT=sk-secret",
            "EMBEDDING_SERVER_API_KEYS=10.0.0.1",
            "EMBEDDING_SERVER_API_KEYS=tcp://10.0.0.1:8000",
            "EMBEDDING_SERVER_KEY_SERVICE_HOST=sk-secret",
            "EMBEDDING_SERVER_KEY_SERVICE_HOST=dead",
            "EMBEDDING_SERVER_KEY_SERVICE_PORT=123456",
            "EMBEDDING_SERVER_SERVICE_PORT_KEY=sk-1",
            "EMBEDDING_SERVER_KEY_PORT_8000_TCP_PROTO=sk",
            "embedding_server_keys_port=tcp://10.0.0.1:8000",
        ],
    )
    def test_name_and_value_must_both_be_of_its_form(self, variable: str) -> None:
        name, _, value = variable.partition("=")
        assert kubernetes_variables({name: value}) == []
        if "KEY" in name.upper():
            assert unknown_environment_variables({name: value}) == [name]

    def test_all_of_them_are_one_line_of_the_log(self, tmp_path: Path) -> None:
        write_model(tmp_path, card_table())
        services = ("", "_KEYS")
        environ = {
            f"EMBEDDING_SERVER{service}{end}": value
            for service in services
            for end, value in OF_ONE_SERVICE.items()
        }
        outcome = run("serve", "--model", "nope", "--models-dir", tmp_path, env=environ)
        told, mistake = outcome.stderr.splitlines()
        assert [name for name in environ if name not in told] == []
        assert "INFO server.commands.serve ignored, since Kubernetes sets them" in told
        assert mistake == "embedding-server: model nope not found; models here: tiny"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home folder and without an entry in the password file."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


NO_HOME = (
    "setting data_dir: this user has no home folder; name a folder with --data-dir "
    "(EMBEDDING_SERVER_DATA_DIR)"
)


@pytest.mark.usefixtures("nobody")
class TestNoHome:
    def test_pulls_beside_the_shipped_models_are_cleared(self, tmp_path: Path) -> None:
        left = write_model(tmp_path, card_table()) / ".pull-0123abcd"
        left.mkdir()
        (left / ".lock").touch()
        outcome = run("models", "clean", "--models-dir", tmp_path)
        assert (outcome.exit_code, outcome.stderr) == (0, "")
        assert not left.exists()

    def test_the_models_that_came_with_the_software_are_served_without_keys(self) -> None:
        app = create_app(load_settings({"model": [PLAIN]}))
        services = app.state.services
        assert [card.name for card in services.models.registry.cards] == [PLAIN]
        assert not services.access.asks_for_keys

    def test_older_platformdirs_name_a_folder_below_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "platformdirs.user_data_dir", lambda *_, **__: "~/.local/share/embedding-server"
        )
        assert load_settings().data_dir is None

    def test_the_models_are_listed(self) -> None:
        outcome = run("models", "list")
        assert outcome.exit_code == 0
        assert PLAIN in outcome.stdout
        assert outcome.stderr == ""

    def test_the_self_test_begins(self) -> None:
        assert next(examine(load_settings({"model": [PLAIN]}), offline=False)).good

    @pytest.mark.parametrize(
        "arguments",
        [
            ("keys", "create", "--name", "a"),
            ("keys", "list"),
            ("keys", "revoke", "a"),
            ("usage",),
            ("models", "import", "folder"),
            ("models", "pull", "organisation/model"),
            ("bundle", "install", "file"),
        ],
        ids=" ".join,
    )
    def test_what_needs_a_folder_says_which_setting_to_give(
        self, arguments: tuple[str, ...]
    ) -> None:
        assert_mistake(run(*arguments), NO_HOME)

    def test_keys_in_a_database_elsewhere_need_no_folder(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'keys.db'}"
        assert run("keys", "create", "--name", "team a", "--database-url", url).exit_code == 0
        assert "team a" in run("keys", "list", "--database-url", url).stdout

    def test_a_folder_that_is_named_is_used(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        assert run("keys", "create", "--name", "team a", "--data-dir", data).exit_code == 0
        assert "team a" in run("keys", "list", "--data-dir", data).stdout


def test_a_data_folder_that_cannot_be_looked_into_is_none_without_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def denied(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    settings = Settings(data_dir=tmp_path)
    monkeypatch.setattr(Path, "stat", denied)  # whoever runs the tests may look everywhere
    with pytest.raises(SettingError, match=f"data_dir {tmp_path}: Permission denied"):
        settings.has_database()


class TestMissing:
    @pytest.mark.parametrize(
        ("arguments", "subject"),
        [
            (("models", "list", "--models-dir", "{}"), "models folder {}"),
            (("models", "list", "--data-dir", "{}"), "data_dir {}"),
            (("models", "verify", "--data-dir", "{}"), "data_dir {}"),
            (("doctor", "--data-dir", "{}"), "data_dir {}"),
            (("keys", "list", "--data-dir", "{}"), "data_dir {}"),
            (("keys", "revoke", "a", "--data-dir", "{}"), "data_dir {}"),
            (("usage", "--data-dir", "{}"), "data_dir {}"),
            (("keys", "import", "{}"), "{}"),
            (("keys", "list", "--database-url", "sqlite:///{}/keys.db"),
             "setting database_url: folder {}"),
            (("models", "import", "{}", "--data-dir", "{}-data"), "{}"),
            (("bundle", "show", "{}"), "bundle {}"),
            (("bundle", "install", "{}", "--data-dir", "{}-data"), "bundle {}"),
            (("bundle", "create", PLAIN, "-o", "{}.tar", "--data-dir", "{}"), "data_dir {}"),
            (("bundle", "create", PLAIN, "-o", "{}.tar", "--wheels-from", "{}"),
             "wheels folder {}"),
            (("models", "list", "--config", "{}"), "configuration file {}"),
            (("embed", "{}"), "{}"),
            (("embed", "{}", "--data-dir", "{}"), "data_dir {}"),
            (("dimensions", PLAIN, "--text", "{}"), "{}"),
            (("dimensions", PLAIN, "--text", "{}", "--evaluate", "{}.csv"), "{}.csv"),
            (("dimensions", PLAIN, "--text", "{}", "--data-dir", "{}"), "data_dir {}"),
        ],
        ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else "",
    )  # fmt: skip
    def test_a_folder_or_file_that_is_missing_is_called_missing(
        self, tmp_path: Path, arguments: tuple[str, ...], subject: str
    ) -> None:
        missing = tmp_path / "missing"
        outcome = run(*(argument.format(missing) for argument in arguments))
        hint = "; set --models-dir" if "--models-dir" in arguments else ""
        assert_mistake(outcome, f"{subject.format(missing)} does not exist{hint}")
        assert not missing.exists()

    def test_a_models_folder_that_an_import_shall_look_into_is_called_missing(
        self, tmp_path: Path
    ) -> None:
        folder = tmp_path / "bert"
        folder.mkdir()
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_text('{"model_type": "bert"}')
        flags = ("--data-dir", tmp_path / "data", "--models-dir", tmp_path / "missing")
        save_file({"weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 9}')
        head = ("--pooling", "mean", "--normalize")
        outcome = run("models", "import", folder, *head, *flags)
        fault = f"models folder {tmp_path / 'missing'} does not exist; set --models-dir"
        assert_mistake(outcome, fault)

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (("keys", "create", "--name", "a", "--data-dir", "{}"), "data_dir {} is not a folder"),
            (("models", "import", "{}"), "{} is not a folder"),
            (("models", "list", "--models-dir", "{}"),
             "models folder {} is not a folder; set --models-dir"),
        ],
    )  # fmt: skip
    def test_a_file_in_a_folders_place_is_not_called_missing(
        self, tmp_path: Path, arguments: tuple[str, ...], line: str
    ) -> None:
        file = tmp_path / "file"
        file.touch()
        outcome = run(*(argument.format(file) for argument in arguments))
        assert_mistake(outcome, line.format(file))

    def test_a_server_may_begin_before_its_data_folder_is_made_and_says_so(
        self, tmp_path: Path
    ) -> None:
        missing = tmp_path / "data"
        outcome = run("serve", "--model", "nope", "--data-dir", missing)
        told, mistake = outcome.stderr.splitlines()
        assert told.endswith(f"WARNING server.commands.serve data_dir {missing} does not exist")
        assert mistake.startswith("embedding-server: model nope not found")

    def test_a_database_of_a_uri_is_left_to_sqlite(self, tmp_path: Path) -> None:
        from server.access.database import Database

        with pytest.raises(DatabaseError, match="unable to open"):
            Database(f"sqlite:///file:{tmp_path}/missing/keys.db?mode=ro&uri=true")


class TestBrokenCards:
    @pytest.fixture
    def broken(self, tmp_path: Path) -> Path:
        write_model(tmp_path, card_table())
        return write_card(tmp_path, card_table("org/broken", pooling="max")) / "card.toml"

    def test_the_list_shows_the_others_and_names_it(self, broken: Path, tmp_path: Path) -> None:
        with start("models", "list", "--models-dir", tmp_path) as listing:
            listed, errors = listing.communicate()
        assert listing.returncode == 0
        assert b"tiny" in listed
        (line,) = errors.decode().splitlines()
        assert line.startswith(f"card {broken}: pooling: ")

    def test_a_server_of_another_model_starts_and_warns(
        self, broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = create_app(Settings(models_dir=tmp_path, model=["tiny"]))
        assert [card.name for card in app.state.services.models.registry.cards] == ["tiny"]
        assert [f"card {broken}" in line for line in caplog.messages] == [True]

    def test_a_server_of_another_model_than_those_that_contradict_each_other_starts_and_warns(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_model(tmp_path, card_table())
        for name in ("one", "two"):
            write_card(tmp_path, card_table(name, aliases=["small"]))
            write_card(tmp_path / name, card_table("same"))
        app = create_app(Settings(models_dir=tmp_path, model=["tiny"]))
        assert [card.name for card in app.state.services.models.registry.cards] == ["tiny"]
        assert [line.partition(" claim ")[0] for line in caplog.messages] == [
            "models same and same both",
            "models one and two both",
        ]

    def test_the_list_survives_a_card_that_no_parser_reads(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_model(tmp_path, card_table())
        for name, text in (("deep", "[" * 5000 + "]" * 5000), ("long", "9" * 5000)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "card.toml").write_text(f"x = {text}")
        outcome = run("models", "list", "--models-dir", tmp_path)
        assert outcome.exit_code == 0
        assert "tiny" in outcome.stdout
        deep, long = caplog.messages
        assert deep == f"card {tmp_path}/deep/card.toml: nested too deeply (left out)"
        assert long.startswith(f"card {tmp_path}/long/card.toml: Exceeds the limit (4300 digits)")

    def test_who_asks_for_it_is_told_so_in_one_line(
        self, broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        here = ("--models-dir", tmp_path)
        for asking in (
            ("models", "verify", "org/broken", *here),
            ("models", "verify", *here),  # all that there are
            ("models", "pull", "org/broken", *here),  # not from the hub
            ("bundle", "create", "org/broken", "-o", tmp_path / "bundle", *here),
            ("doctor", "--model", "org/broken", *here),
            ("embed", "-", "--model", "org/broken", *here),
        ):
            outcome = run(*asking)
            assert outcome.exit_code == 2
            assert outcome.stderr.startswith(f"embedding-server: card {broken}: pooling: ")
        assert caplog.messages == []

    def test_another_model_may_be_imported_beside_it_but_none_of_its_names(
        self, broken: Path, tmp_path: Path
    ) -> None:
        for places in ((tmp_path, None), (tmp_path / "installed", tmp_path)):
            into, beside = places
            check_free(into, "mine", Wishes(aliases=("other",)), beside)
            for wishes in (Wishes(aliases=("org/broken",)), Wishes(aliases=("sick",))):
                write_card(tmp_path, card_table("org/broken", aliases=["sick"], pooling="max"))
                with pytest.raises(CardError, match=f"^card {broken}: pooling"):
                    check_free(into, "mine", wishes, beside)

    def test_a_broken_model_is_replaced_when_that_is_asked_for(
        self, broken: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ImportRefused, match="--replace replaces it"):
            check_free(tmp_path, "org/broken", Wishes())
        check_free(tmp_path, "org/broken", Wishes(replace=True))

    def test_a_bundle_of_another_model_is_made_and_installed(
        self, broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        card = read_card(tmp_path / "tiny", tmp_path)
        Contents([card], []).write(tmp_path / "bundle", force=False, report=lambda _: None)
        data = tmp_path / "data"
        write_card(data / "models", card_table("broken-too", pooling="max"))
        here = ("--models-dir", tmp_path, "--data-dir", data)
        assert run("bundle", "install", tmp_path / "bundle", *here).exit_code == 0
        assert read_card(data / "models" / "tiny", data / "models").name == "tiny"
        assert run("bundle", "create", "tiny", "-o", tmp_path / "again", *here).exit_code == 0
        assert [line.startswith("card ") for line in caplog.messages] == [True, True]
