"""The commands `keys ...` and `usage`, run as users run them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.access.database import Database
from server.access.keys import ANONYMOUS
from server.access.ledger import Ledger
from tests.command_line import Outcome, assert_mistake, run


class Commands:
    """`embedding-server` with one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def run(self, *arguments: str, **env: str) -> Outcome:
        return run(*arguments, env={"EMBEDDING_SERVER_DATA_DIR": str(self.data_dir), **env})

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    def mistake(self, *arguments: str) -> str:
        """The one line that says what is wrong."""
        done = self.run(*arguments)
        assert_mistake(done)
        return done.stderr


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path / "data")


LIMITED = ("--rpm", "60", "--tpm", "100000", "--token-budget", "5000000")


def test_a_created_key_is_shown_with_its_secret_once(commands: Commands) -> None:
    done = commands.run("keys", "create", "--name", "team a")
    assert done.exit_code == 0, done.stderr
    secret = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", secret)
    for arguments in (["list"], ["show", "team a"], ["list", "--json"]):
        told = commands.run("keys", *arguments).stdout
        assert "team a" in told
        assert secret not in told
    for file in commands.data_dir.iterdir():
        assert secret.encode() not in file.read_bytes()


def test_json_tells_id_secret_and_limits(commands: Commands) -> None:
    made = commands.json("keys", "create", "--name", "a", *LIMITED, "--model", "m", "--scope",
                         "admin", "--expires", "90d")  # fmt: skip
    assert made["secret"].startswith(made["shown"])
    assert (made["rpm"], made["tpm"], made["token_budget"]) == (60, 100_000, 5_000_000)
    assert (made["scopes"], made["models"], made["state"]) == (["admin"], ["m"], "until")
    expires = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < expires <= timedelta(days=90)
    del made["secret"]
    assert commands.json("keys", "show", made["id"]) == made
    assert commands.json("keys", "list") == [made]


def test_a_key_without_limits_may_do_everything_but_see_the_metrics(commands: Commands) -> None:
    made = commands.json("keys", "create", "--name", "a")
    assert made["scopes"] == ["embeddings", "models"]
    for name in ("rpm", "tpm", "token_budget", "expires_at", "models", "revoked_at"):
        assert made[name] is None


def test_what_is_updated_changes_and_nothing_else(commands: Commands) -> None:
    made = commands.json("keys", "create", "--name", "a", *LIMITED)
    del made["secret"]
    changed = commands.json("keys", "update", "a", "--rpm", "none", "--token-budget", "7",
                            "--model", "m")  # fmt: skip
    assert changed == {**made, "rpm": None, "token_budget": 7, "models": ["m"]}
    assert commands.json("keys", "update", "a", "--model", "all")["models"] is None


def test_revoked_and_rotated_keys_are_told(commands: Commands) -> None:
    made = commands.json("keys", "create", "--name", "a")
    rotated = commands.json("keys", "rotate", "a", "--grace", "24h")
    assert rotated["id"] == made["id"]
    assert rotated["secret"] != made["secret"]
    assert commands.json("keys", "revoke", made["id"])["state"] == "revoked"
    assert "revoked" in commands.mistake("keys", "rotate", "a")


def test_existing_secrets_are_imported_once(commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "secrets.txt"
    file.write_text(
        "# from the old gateway\nteam a sk-old-0123456789abc\n\nb sk-old-9876543210abc\n"
    )
    done = commands.json("keys", "import", str(file), "--tpm", "1000")
    assert [(key["name"], key["tpm"]) for key in done["imported"]] == [
        ("team a", 1000),
        ("b", 1000),
    ]
    again = commands.run("keys", "import", str(file))
    assert again.stdout == "0 keys imported, 2 were known\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no key"),
        ("sk-onlyasecret", "line 1: must be NAME SECRET"),
        ("a short", "line 1: the secret"),
        ("a sk-0123456789abcdef\nb sk-0123456789abcdef", "line 2: the name or the secret"),
        ("a sk-0123456789abcdef # production-key-01", "line 1: must be NAME SECRET"),
        ("a sk-0123456789abcdef production-key-01", "line 1: must be NAME SECRET"),
        ("a sk-0123456789é", "line 1: the secret"),
    ],
)
def test_a_file_that_is_wrong_imports_nothing_and_is_told_without_secrets(
    commands: Commands, tmp_path: Path, text: str, reason: str
) -> None:
    file = tmp_path / "secrets.txt"
    file.write_text(text)
    line = commands.mistake("keys", "import", str(file))
    assert reason in line
    assert "0123456789" not in line
    assert not commands.data_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["create", "--name", "a", "--rpm", "0"], "--rpm 0"),
        (["create", "--name", "a", "--tpm", "many"], "--tpm many"),
        (["create", "--name", "a", "--token-budget", "-5"], "--token-budget -5"),
        (["create", "--name", "a", "--token-budget", "9" * 5_000], "at most 15 digits"),
        (["create", "--name", "a", "--expires", "2020-01-01"], "is over"),
        (["create", "--name", "a", "--expires", "soon"], "--expires soon"),
        (["create", "--name", ""], "cannot be a key's name"),
        (["create", "--name", "key_1"], "cannot be a key's name"),
        (["create", "--name", "a\x1b[31m"], "cannot be a key's name"),
        (["update", "a"], "name what to change"),
        (["rotate", "a", "--grace", "1"], "--grace 1"),
        (["import", "/no/such/file"], "/no/such/file"),
        (["list", "--database-url", "mysql://x"], "neither sqlite nor postgresql"),
    ],
)
def test_mistakes_are_told_in_one_line(
    commands: Commands, arguments: list[str], reason: str
) -> None:
    assert reason in commands.mistake("keys", *arguments)


def test_a_key_that_there_is_not_is_named(commands: Commands) -> None:
    commands.data_dir.mkdir()
    assert "there is no key nobody" in commands.mistake("keys", "show", "nobody")


def test_a_name_is_given_once(commands: Commands) -> None:
    commands.json("keys", "create", "--name", "a")
    assert "a key named a" in commands.mistake("keys", "create", "--name", "a")


def test_usage_is_shown_by_each_of_its_parts(commands: Commands, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    database = Database(url)
    ledger = Ledger(database, hash_users=False)
    for user, tokens in (("ann", 5), ("bob", 70), ("[/x]\x1b[31m", 1)):
        ledger.count(ANONYMOUS, "m", user, tokens)
    ledger.write()
    database.close()
    there = ("--database-url", url)
    assert commands.json("usage", *there) == [{"key": "anonymous", "requests": 3, "tokens": 76}]
    top = commands.json("usage", *there, "--by", "user", "--top", "2", "--key", "anonymous")
    assert [row["user"] for row in top] == ["bob", "ann"]
    assert commands.json("usage", *there, "--by", "model", "--since", "1d")[0]["tokens"] == 76
    assert commands.json("usage", *there, "--by", "day", "--since", "2999-01-01") == []
    assert "bob" in commands.run("usage", *there, "--by", "user").stdout
    assert "[/x]\ufffd[31m" in commands.run("usage", *there, "--by", "user").stdout
    assert "--since 999999d" in commands.mistake("usage", *there, "--since", "999999d")
    assert "--by hour" in commands.mistake("usage", *there, "--by", "hour")
    assert "--since yesterday" in commands.mistake("usage", *there, "--since", "yesterday")


def test_the_database_is_found_by_its_variable(commands: Commands, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    made = commands.run("keys", "create", "--name", "a", EMBEDDING_SERVER_DATABASE_URL=url)
    assert made.exit_code == 0
    assert [key["name"] for key in commands.json("keys", "list", "--database-url", url)] == ["a"]
    assert not commands.data_dir.exists()


@pytest.mark.parametrize(
    "text", ["# old\nteam a sk-old-0123456789abc\n", "b sk-old-0123456789abc\n"]
)
def test_a_file_of_secrets_may_begin_with_a_byte_order_mark(
    commands: Commands, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "secrets.txt"
    file.write_text(f"\ufeff{text}", encoding="utf-8")
    done = commands.json("keys", "import", str(file))
    assert [key["name"] for key in done["imported"]] in (["team a"], ["b"])


def test_revoking_is_told_in_lines_unless_json_is_asked_for(commands: Commands) -> None:
    commands.run("keys", "create", "--name", "a")
    assert "\nstate: revoked\n" in commands.run("keys", "revoke", "a").stdout
