from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from server import __version__
from server.commands.flags import TRUST
from server.settings import Settings
from tests.catalog import FILES, card_table, pins, variant_table, write_card, write_model
from tests.command_line import PATIENCE_S, Outcome, assert_mistake, run, start, user_environment
from tests.conftest import REPOSITORY

MODELS_DIR = REPOSITORY / "models"


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A models folder that passes the look at its files' sizes, which is all that precedes
    listening; there is nothing in it to compute with."""
    write_model(tmp_path / "models", card_table())
    return tmp_path / "models"


def serve(models_dir: Path, *arguments: str | Path) -> Outcome:
    return run("serve", "--model", "tiny", "--models-dir", models_dir, *arguments)


def test_what_a_command_changes_in_the_process_of_its_test_is_put_back(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> object:
        root = logging.getLogger()
        return (
            dict(os.environ),
            (sys.argv, sys.stdin, sys.stdout, sys.stderr),
            (root.level, root.handlers[:], logging.getLogger("uvicorn").level),
            (warnings.showwarning, warnings.filters[:]),
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            resource.getrlimit(resource.RLIMIT_NOFILE),
        )

    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        before = state()
        outcome = serve(models_dir, "--port", "0", "--log-level", "debug")
        assert outcome.exit_code == 2
        assert state() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_version_is_printed() -> None:
    outcome = run("--version")
    assert (outcome.stdout, outcome.stderr) == (f"embedding-server {__version__}\n", "")
    assert outcome.exit_code == 0


def test_the_installed_command_is_the_module() -> None:
    script = Path(sys.executable).with_name("embedding-server")
    outcome = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert outcome.stdout == run("--version").stdout


def test_a_process_tells_its_version_without_loading_what_computes_or_serves() -> None:
    outcome = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "server", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert outcome.stdout == f"embedding-server {__version__}\n"
    imported = {line.rsplit("|", 1)[-1].strip() for line in outcome.stderr.splitlines()}
    assert "server.commands.cli" in imported
    assert imported.isdisjoint({"torch", "onnxruntime", "tokenizers", "numpy", "fastapi", "rich"})


def test_a_mistake_ends_a_process_with_one_line_and_code_2() -> None:
    running = start("serve", "--model", "tinny")
    out, errors = running.communicate(timeout=PATIENCE_S)
    outcome = Outcome(running.returncode, out.decode(), errors.decode())
    assert_mistake(outcome, "model tinny not found")


class TestHelp:
    def test_serve_has_a_flag_for_every_setting(self) -> None:
        outcome = run("serve", "--help")
        flags = set(re.findall(r"(?<!\S)--[a-z-]+", outcome.stdout))
        # What a server serves is installed already: whom to trust is not asked again.
        expected = {"--" + n.replace("_", "-") for n in Settings.model_fields if n not in TRUST}
        assert expected <= flags
        assert outcome.exit_code == 0

    def test_serve_tells_what_each_setting_is_for_and_no_secret(self) -> None:
        env = {"EMBEDDING_SERVER_API_KEY": "sk-do-not-print-me"}
        outcome = run("serve", "--help", env=env)
        text = " ".join(re.findall(r"[^\s│]+", outcome.stdout))  # without line breaks and frames
        fields = Settings.model_fields.items()
        descriptions = [field.description or "" for name, field in fields if name not in TRUST]
        assert [each for each in descriptions if each not in text] == []
        assert "sk-do-not-print-me" not in outcome.stdout + outcome.stderr


class TestMistakes:
    def test_an_unknown_model_is_named_with_those_there_are(self, models_dir: Path) -> None:
        outcome = run("serve", "--model", "tinny", "--models-dir", models_dir)
        assert_mistake(outcome, "model tinny not found", "tiny", "did you mean tiny?")

    def test_a_models_folder_that_is_absent_is_named(self, tmp_path: Path) -> None:
        outcome = serve(tmp_path / "absent")
        assert_mistake(outcome, str(tmp_path / "absent"), "--models-dir")

    def test_files_not_fetched_yet_are_named_with_the_command_that_fetches_them(
        self, tmp_path: Path
    ) -> None:
        for card in MODELS_DIR.glob("*/card.toml"):
            (tmp_path / card.parent.name).mkdir()
            shutil.copy(card, tmp_path / card.parent.name)
        outcome = run("serve", "--models-dir", tmp_path)
        assert_mistake(
            outcome, "all-MiniLM-L6-v2/model.safetensors", "embedding-server models pull"
        )

    def test_a_file_with_wrong_bytes_is_named(self, models_dir: Path) -> None:
        weights = models_dir / "tiny" / "model.safetensors"
        weights.write_bytes(b"x" * len(FILES["model.safetensors"]))
        assert_mistake(serve(models_dir, "--port", "0"), str(weights), "sha256")

    def test_a_file_with_wrong_bytes_is_opened_if_only_sizes_are_looked_at(
        self, models_dir: Path
    ) -> None:
        tokenizer = models_dir / "tiny" / "tokenizer.json"
        tokenizer.write_bytes(b"x" * len(FILES["tokenizer.json"]))
        outcome = serve(models_dir, "--port", "0", "--check-files", "sizes")
        assert_mistake(outcome, f"tokenizer {tokenizer}")
        assert "sha256" not in outcome.stderr

    def test_a_file_of_another_size_is_named_if_sizes_are_looked_at(self, models_dir: Path) -> None:
        (models_dir / "tiny" / "graph.onnx").write_bytes(b"cut")
        outcome = serve(models_dir, "--check-files", "sizes")
        assert_mistake(outcome, "missing or incomplete: tiny/graph.onnx")

    @pytest.mark.parametrize("damage", [b"cut", None], ids=["cut off", "absent"])
    def test_a_file_that_is_cut_off_or_absent_is_met_when_it_is_opened_if_nothing_is_looked_at(
        self, models_dir: Path, damage: bytes | None
    ) -> None:
        tokenizer = models_dir / "tiny" / "tokenizer.json"
        tokenizer.unlink()
        if damage:
            tokenizer.write_bytes(damage)
        outcome = serve(models_dir, "--port", "0", "--check-files", "off")
        assert_mistake(outcome, f"tokenizer {tokenizer}")
        assert "missing or incomplete" not in outcome.stderr

    def test_an_unknown_way_to_check_files_is_refused_with_those_there_are(
        self, models_dir: Path
    ) -> None:
        outcome = serve(models_dir, "--check-files", "size")
        assert_mistake(outcome, "setting check_files (--check-files)", "'full', 'sizes' or 'off'")

    def test_files_that_are_right_but_no_model_are_named(self, models_dir: Path) -> None:
        outcome = serve(models_dir, "--port", "0")
        assert_mistake(outcome, str(models_dir / "tiny" / "tokenizer.json"))

    @pytest.mark.parametrize("port", ["http", "65536"])
    def test_a_bad_port_is_named(self, models_dir: Path, port: str) -> None:
        assert_mistake(serve(models_dir, f"--port={port}"), "setting port (--port)")

    def test_a_port_in_use_is_named(self, models_dir: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            outcome = serve(models_dir, "--port", str(port))
        assert_mistake(outcome, f"cannot listen on 127.0.0.1 port {port}", "in use")

    @pytest.mark.parametrize("host", ["192.0.2.1", "a..b"])
    def test_an_address_that_is_not_this_machines_is_named(
        self, models_dir: Path, host: str
    ) -> None:
        outcome = serve(models_dir, "--host", host, "--port", "0", "--allow-no-keys")
        assert_mistake(outcome, f"cannot listen on {host} port 0")

    def test_listening_beyond_this_machine_without_keys_is_refused_with_the_way_out(
        self, models_dir: Path
    ) -> None:
        outcome = serve(models_dir, "--host", "0.0.0.0")
        assert_mistake(outcome, "0.0.0.0", "--api-key", "--allow-no-keys")

    def test_a_switch_can_be_turned_off_again_by_its_flag(self, models_dir: Path) -> None:
        outcome = run(
            *("serve", "--models-dir", models_dir, "--model", "tiny", "--host", "0.0.0.0"),
            "--no-allow-no-keys",
            env={"EMBEDDING_SERVER_ALLOW_NO_KEYS": "true"},
        )
        assert_mistake(outcome, "refusing to listen on 0.0.0.0")

    def test_a_configuration_file_that_is_no_toml_is_named(self, tmp_path: Path) -> None:
        config = tmp_path / "settings.toml"
        config.write_text("port = 80 80")
        assert_mistake(run("serve", "--config", config), str(config), "line 1")

    def test_a_configuration_file_that_is_absent_is_named(self, tmp_path: Path) -> None:
        config = tmp_path / "settings.toml"
        assert_mistake(run("serve", "--config", config), str(config), "does not exist")

    def test_an_unknown_setting_is_named_with_the_nearest(self, tmp_path: Path) -> None:
        config = tmp_path / "settings.toml"
        config.write_text("prot = 8080")
        outcome = run("serve", env={"EMBEDDING_SERVER_CONFIG": str(config)})
        assert_mistake(outcome, str(config), "unknown setting prot", "did you mean port?")

    def test_a_bad_value_in_the_environment_is_named(self) -> None:
        outcome = run("serve", env={"EMBEDDING_SERVER_THREADS": "many"})
        assert_mistake(outcome, "setting threads (EMBEDDING_SERVER_THREADS)")

    def test_a_key_file_that_is_absent_is_named(self, models_dir: Path, tmp_path: Path) -> None:
        outcome = serve(models_dir, "--api-key-file", tmp_path / "keys")
        assert_mistake(outcome, str(tmp_path / "keys"))

    def test_an_unusable_key_is_not_shown(self, models_dir: Path) -> None:
        outcome = serve(models_dir, "--api-key", "sk-do not-print-me")
        assert_mistake(outcome, "setting api_key: key number 1")
        assert "print-me" not in outcome.stderr

    @pytest.mark.parametrize("value", ["", ",", "sk-one,"])
    def test_an_empty_key_in_the_environment_does_not_open_the_server(
        self, models_dir: Path, value: str
    ) -> None:
        env = {"EMBEDDING_SERVER_API_KEY": value}
        outcome = run("serve", "--models-dir", models_dir, "--model", "tiny", env=env)
        assert_mistake(outcome, "setting api_key: key number")

    def test_a_variable_that_looks_like_a_key_but_is_none_stops_the_start(
        self, models_dir: Path
    ) -> None:
        env = {"EMBEDDING_SERVER_API_KEYS": "sk-secret"}
        outcome = run("serve", "--models-dir", models_dir, "--model", "tiny", env=env)
        assert_mistake(outcome, "EMBEDDING_SERVER_API_KEYS names no setting")
        assert "sk-secret" not in outcome.stderr

    def test_token_ids_of_a_model_that_is_not_served_are_refused(self, models_dir: Path) -> None:
        outcome = serve(models_dir, "--model-token-ids", "other")
        assert_mistake(outcome, "model_token_ids", "other")

    def test_an_unknown_flag_ends_with_the_same_code_and_names_the_nearest(self) -> None:
        outcome = run("serve", "--prot", "8080")
        assert "--prot" in outcome.stderr
        assert "--port" in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert outcome.exit_code == 2

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_an_environment_variable_that_names_no_setting_is_a_line_of_the_log(
        self, models_dir: Path, log_format: str
    ) -> None:
        outcome = run(
            *("serve", "--models-dir", models_dir, "--model", "tinny", "--log-format", log_format),
            env={"EMBEDDING_SERVER_PROT": "8080"},
        )
        warning, mistake = outcome.stderr.splitlines()
        if log_format == "json":
            line = json.loads(warning)
            warning = f"{line['level'].upper()} {line['logger']} {line['message']}"
        assert warning.endswith(
            "WARNING server.commands.serve EMBEDDING_SERVER_PROT names no setting"
        )
        assert mistake.startswith("embedding-server: model tinny not found")

    def test_pulling_an_unknown_model_is_refused(self, models_dir: Path) -> None:
        outcome = run("models", "pull", "tinny", "--models-dir", models_dir)
        assert_mistake(outcome, "model tinny not found", "did you mean tiny?")


class TestModelsList:
    LONG = "organisation/a-model-with-a-name-that-is-longer-than-most-v2"
    ALIASES = ("text-embedding-3-small", "text-embedding-3-large", "another-quite-long-alias-1")

    @pytest.fixture
    def listed(self, models_dir: Path) -> Path:
        write_card(models_dir, card_table(self.LONG, aliases=self.ALIASES, embedding_dim=1024))
        rotation = {"rotation.safetensors": b"x"}
        matryoshka = {"dimensions": [8, 4, 2], "rotation": "rotation.safetensors"}
        table = variant_table("variant", files=pins(rotation), matryoshka=matryoshka)
        write_model(models_dir, table, rotation)
        return models_dir

    @pytest.mark.parametrize(
        "env",
        [{"COLUMNS": "40"}, {"FORCE_COLOR": "1"}],
        ids=lambda env: next(iter(env)),
    )
    def test_in_a_pipe_nothing_is_cut(self, listed: Path, env: dict[str, str]) -> None:
        outcome = run("models", "list", "--models-dir", listed, env=env)
        wanted = ["tiny", "variant", "8, 4, 2", "1024", self.LONG, *self.ALIASES]
        wanted += [f"{self.LONG}/{file}" for file in FILES]
        assert [text for text in wanted if text not in outcome.stdout] == []
        assert "…" not in outcome.stdout
        assert outcome.exit_code == 0

    def test_each_model_says_whether_its_files_are_there(self, listed: Path) -> None:
        (listed / "tiny" / "graph.onnx").unlink()
        outcome = run("models", "list", "--models-dir", listed)
        rows = {line.split()[1]: line for line in outcome.stdout.splitlines() if "│" in line}
        assert "missing: tiny/graph.onnx" in rows["tiny"]
        assert "missing: tiny/graph.onnx" in rows["variant"]

    def test_a_model_whose_files_are_there_is_present(self, models_dir: Path) -> None:
        outcome = run("models", "list", "--models-dir", models_dir)
        assert "present" in outcome.stdout
        assert "missing" not in outcome.stdout


class TestModelsVerify:
    @pytest.fixture
    def both(self, models_dir: Path) -> Path:
        rotation = {"rotation.safetensors": b"a rotation"}
        write_model(models_dir, variant_table(files=pins(rotation)), rotation)
        return models_dir

    def test_each_model_on_this_machine_gets_a_line(self, both: Path, tmp_path: Path) -> None:
        write_model(tmp_path / "data" / "models", card_table("installed"))
        outcome = run("models", "verify", "--models-dir", both, "--data-dir", tmp_path / "data")
        assert outcome.stdout.splitlines() == [
            "tiny: 3 files, 30 bytes, sha256 as the card says",
            "variant: 4 files, 40 bytes, sha256 as the card says",
            "installed: 3 files, 30 bytes, sha256 as the card says",
        ]
        assert (outcome.exit_code, outcome.stderr) == (0, "")  # no bar where nobody looks

    def test_all_wrong_files_are_named_and_the_code_is_2(self, both: Path) -> None:
        (both / "tiny" / "graph.onnx").unlink()
        (both / "tiny" / "tokenizer.json").write_bytes(b"A tokenizer")
        (both / "variant" / "rotation.safetensors").write_bytes(b"a rot")
        outcome = run("models", "verify", "--models-dir", both)
        assert outcome.exit_code == 2
        tiny, variant = outcome.stdout.splitlines()
        base = [f"{both}/tiny/graph.onnx: No such file", f"{both}/tiny/tokenizer.json has sha256"]
        own = f"{both}/variant/rotation.safetensors has 5 bytes, but the card says 10"
        assert [text for text in base if text not in tiny] == []
        assert [text for text in (*base, own) if text not in variant] == []
        (line,) = outcome.stderr.splitlines()
        assert [line.count(text) for text in (*base, own)] == [1, 1, 1]
        assert "model.safetensors" not in outcome.stdout + outcome.stderr

    def test_only_the_models_that_are_named_are_read(self, both: Path) -> None:
        (both / "variant" / "rotation.safetensors").unlink()
        outcome = run("models", "verify", "tiny", "--models-dir", both)
        assert (outcome.exit_code, len(outcome.stdout.splitlines())) == (0, 1)

    def test_a_wrong_base_makes_its_variant_wrong(self, both: Path) -> None:
        (both / "tiny" / "graph.onnx").unlink()
        outcome = run("models", "verify", "variant", "--models-dir", both)
        assert outcome.exit_code == 2
        assert outcome.stdout.startswith(f"variant: {both}/tiny/graph.onnx: No such file")

    def test_an_unknown_model_is_named(self, both: Path) -> None:
        outcome = run("models", "verify", "tinny", "--models-dir", both)
        assert_mistake(outcome, "model tinny not found", "did you mean tiny?")

    def test_a_folder_without_models_is_no_success(self, tmp_path: Path) -> None:
        outcome = run("models", "verify", "--models-dir", tmp_path, "--data-dir", tmp_path)
        assert_mistake(outcome, f"there is no model in {tmp_path}")

    def test_a_terminal_sees_a_bar_in_bytes(self, both: Path) -> None:
        content = bytes(50_000_000)
        write_model(both, card_table("big", files=pins({"w": content})), {"w": content})
        leader, follower = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "server", "models", "verify", "--models-dir", str(both)],
            stderr=follower,
            stdout=subprocess.PIPE,
            env=user_environment({"TERM": "xterm", "COLUMNS": "100"}),
            text=True,
        ) as verifying:
            os.close(follower)
            seen = b""
            with contextlib.suppress(OSError):  # how Linux tells that the other side is closed
                while chunk := os.read(leader, 4096):
                    seen += chunk
            assert verifying.stdout is not None
            assert len(verifying.stdout.readlines()) == 3
        os.close(leader)
        assert b"MB" in seen
        assert verifying.returncode == 0


@pytest.mark.parametrize(
    ("hosts", "reason"),
    [
        (["127.0.0.1:8233"], "holds a port as well: write 127.0.0.1 here"),
        (["::1", "127.0.0.1"], "takes one value, not 2"),
        (["[::1"], "must be one address or name"),
    ],
)
def test_a_host_that_is_not_one_host_is_told_in_one_line(hosts: list[str], reason: str) -> None:
    outcome = run("serve", "--model=absent", *(f"--host={host}" for host in hosts))
    assert_mistake(outcome, f"setting host (--host): {reason}")


@pytest.mark.parametrize("flag", ["--port", "--data-dir", "--log-level", "--database-url"])
def test_a_setting_given_twice_is_refused_without_its_values(flag: str) -> None:
    outcome = run("serve", flag, "first", flag, "second")
    assert_mistake(outcome, f"({flag}): takes one value, not 2")
    assert "second" not in outcome.stderr
