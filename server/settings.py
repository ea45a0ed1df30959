"""Every setting of the server, declared once: name, default, bounds, unit (as suffix) and help.

Four sources fill this one declaration, the first that names a setting wins: command-line flags,
environment variables (`EMBEDDING_SERVER_` + the name in capitals), a TOML file, the default.
This module knows of no other room.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from server.errors import SettingError, unusable
from server.program.command_lines import CHECKOUT, own_command

ENV_PREFIX = "EMBEDDING_SERVER_"

# What Kubernetes sets for a Service named embedding-server, embedding-server-gpu and the like. Name
# and value must both be of its form, so that a setting, or a typing error in one, is not taken for
# it; a port's own name may be anything.
_ADDRESS = r"(\d{1,3}(\.\d{1,3}){3}|[0-9a-fA-F]*:[0-9a-fA-F:.]+)"
_URL = rf"(tcp|udp|sctp)://(\[{_ADDRESS}\]|{_ADDRESS}):\d{{1,5}}"
_KUBERNETES = re.compile(
    rf"{ENV_PREFIX.rstrip('_')}(_[A-Z0-9_]+)?("
    rf"_SERVICE_HOST={_ADDRESS}|_SERVICE_PORT(_[A-Z0-9_]+)?=\d{{1,5}}|_PORT={_URL}|"
    rf"_PORT_\d{{1,5}}_(TCP|UDP|SCTP)"
    rf"(={_URL}|_PROTO=(tcp|udp|sctp)|_PORT=\d{{1,5}}|_ADDR={_ADDRESS}))",
    re.ASCII,
)


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _split_keys(value: object) -> object:
    # Empty parts stay, to be refused: an unset variable must not open the server.
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _only_if_lazy(seconds: float | None, others: ValidationInfo) -> float | None:
    if seconds is not None and not others.data.get("lazy"):
        raise PydanticCustomError("only_if_lazy", "needs lazy, or the model could not come back")
    return seconds


def _only_with_trust(file: Path | None, others: ValidationInfo) -> Path | None:
    if file is not None and not others.data.get("trust"):
        raise PydanticCustomError("only_with_trust", "needs trust, which names the keys that count")
    return file


def _port_or_off(value: object) -> object:
    if value is None or value == "off" or str(value).isdecimal():
        return value
    raise PydanticCustomError("port_or_off", "must be a port (0 to 65535) or off")


def _only_with_metrics_port(host: str, others: ValidationInfo) -> str:
    if not isinstance(others.data.get("metrics_port", 0), int):
        raise PydanticCustomError("only_with_port", "needs metrics_port: a port of its own")
    return host


def _host_alone(host: str) -> str:
    """Take an IPv6 address out of the brackets that URLs have around it; refuse a port behind."""
    bracketed = re.fullmatch(r"\[(.*)\]", host)
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(bracketed[1] if bracketed else host))
    if with_port := re.fullmatch(r"(\[[^]/[]+\]|[^]:/[]+):(\d+)", host):
        address, port = with_port[1].strip("[]"), with_port[2]
        raise PydanticCustomError(
            "host_and_port",
            "holds a port as well: write {address} here, and the port in the setting port (--port {port})",
            {"address": address, "port": port},
        )
    if re.search(r"[]:/[]", host):
        raise PydanticCustomError(
            "no_host", "must be one address or name, without anything around it"
        )
    return host


# In the environment a list is written with commas; NoDecode keeps it from being read as JSON.
StrList = Annotated[list[str], NoDecode, BeforeValidator(_split_commas)]
SecretList = Annotated[list[SecretStr], NoDecode, BeforeValidator(_split_keys)]


def default_models_dir() -> Path:
    """The `models` folder of the source checkout, else the one a wheel installs beside Python."""
    checkout = CHECKOUT / "models"
    return checkout if checkout.is_dir() else Path(sys.prefix, "share/embedding-server/models")


def default_data_dir() -> Path | None:
    """Where the platform keeps a user's data; None for a user who has no home folder."""
    try:
        folder = Path(platformdirs.user_data_dir("embedding-server", appauthor=False))
    except RuntimeError:  # no HOME and no entry in the password file, as in a bare container
        return None
    return folder if folder.is_absolute() else None  # older platformdirs: "~/.local/share/…"


class Settings(BaseSettings):
    """All settings; instances are immutable. Build one with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=False
    )

    host: Annotated[str, AfterValidator(_host_alone)] = Field(
        "127.0.0.1", description="Address to listen on; `::` takes IPv4 as well."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    trusted_host: StrList = Field(
        [],
        description="Host for which requests are answered, also as `*.example.com` (repeatable); "
        "default: all, but only this machine's names if no key is asked for and only this machine "
        "can connect.",
    )
    model: StrList = Field(
        ["all-MiniLM-L6-v2-matryoshka", "all-MiniLM-L6-v2"],
        description="Model to serve, by its card's name (repeatable; the first is the default).",
    )
    lazy: bool = Field(
        False,
        description="Load a model when it is first asked for, not at the start; requests for it "
        "wait meanwhile.",
    )
    unload_after_s: Annotated[float | None, AfterValidator(_only_if_lazy)] = Field(
        None,
        gt=0,
        le=31_536_000,
        description="With `lazy`: seconds without a request after which a model is unloaded, until "
        "it is asked for again; default: never.",
    )
    models_dir: Path = Field(
        default_factory=default_models_dir,
        description="Folder that holds models; default: the one this software came with. Those in "
        "`models` of the data folder are there beside them.",
    )
    check_files: Literal["full", "sizes", "off"] = Field(
        "full",
        description="How model files are compared with their cards when they are loaded: full reads every byte "
        "(sha256), sizes looks whether each file is there in its size, off trusts the disk.",
    )
    api_key: SecretList = Field(
        [],
        description="Key that clients must send (repeatable). Without any, no key is asked. On a "
        "command line every user of the machine sees it (ps): --api-key-file and the variable "
        "EMBEDDING_SERVER_API_KEY keep it private.",
    )
    api_key_file: Path | None = Field(
        None,
        description="File with one API key a line; of it, a command line shows the name alone.",
    )
    allow_no_keys: bool = Field(
        False, description="Allow listening beyond this machine without API keys."
    )
    data_dir: Path | None = Field(
        default_factory=default_data_dir,
        description="Folder for what this server writes: installed models, keys, usage; default: "
        "the platform's for user data, none for a user without a home folder.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="Database of keys and usage, sqlite:///FILE or postgresql://USER@HOST/NAME; "
        "default: a SQLite file in the data folder, if `keys create` has made one.",
    )
    rate_limit_storage: SecretStr = Field(
        SecretStr("memory://"),
        description="Where requests and tokens a minute are counted: memory:// for this server "
        "alone, redis://HOST for all that share it.",
    )
    if_storage_fails: Literal["serve", "refuse"] = Field(
        "serve",
        description="While Redis or the database is away: serve, with limits of each server's own "
        "and budgets on credit, or refuse keys that have limits with 503.",
    )
    hash_users: bool = Field(
        False, description="Write a keyed hash of `user` into the usage ledger, not its text."
    )
    trust: Path | None = Field(
        None,
        description="File that says whose signature a bundle must have to be shown or installed, as "
        "OpenSSH's allowed_signers; default: a bundle needs no signature.",
    )
    trust_revoked: Annotated[Path | None, AfterValidator(_only_with_trust)] = Field(
        None,
        description="File of keys that `trust` no longer means: OpenSSH's revocation list (KRL), or "
        "public keys, one a line.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Worker threads a model on the CPU; default: the physical cores this process may "
        "use.",
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d{1,3})$")] = Field(
        "auto",
        description="Where models are computed: cpu, cuda (all GPUs), cuda:N (that one), or auto: "
        "the GPUs if there are any and torch is installed.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = Field(
        "auto",
        description="Numbers in which models are computed; auto: on the CPU float32, on a GPU what "
        "the model's card says. bfloat16 and int8 on the CPU need the extra `openvino` and a "
        "processor with instructions for them; int8 is for the CPU alone, float16 for GPUs.",
    )
    min_parity: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Least cosine between a card's reference vectors and this machine's; below it "
        "the server does not start. Default: 0.999; on the CPU 0.9995 in bfloat16, and in int8 what "
        "the model's card says, else 0.99.",
    )
    frontends: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Processes that speak HTTP; with more than one, another process computes for "
        "all of them. Default: 1 on the CPU; on a GPU, which is faster than one process can read "
        "requests, half as many as there are cores, at most 8.",
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="Token budget of a micro-batch, padding counted; default: 256 on the CPU; on a "
        "GPU 16,384, or what fits into its memory.",
    )
    max_request_tokens: int = Field(
        300_000, ge=1, description="Most tokens all inputs of one request may hold together."
    )
    max_queue_tokens: int = Field(
        2_000_000,
        ge=1,
        description="Most tokens of all requests that wait for one model; above it requests are "
        "refused with 503.",
    )
    max_wait_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds that a request may have to wait for the work of others, at the "
        "measured speed; requests that would wait longer are refused with 503. A key whose clients "
        "leave sooner has its next requests of about that size wait no longer than those did, until "
        "a minute or more has passed.",
    )
    max_concurrent_requests: int = Field(
        2048, ge=1, description="Most requests for embeddings at a time; more get 503, unread."
    )
    request_timeout_s: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="Seconds from a request's head to its answer; then it is dropped with 503.",
    )
    max_body_bytes: int = Field(
        32 * 1024 * 1024, ge=1024, description="Largest request body, decompressed, in bytes."
    )
    max_memory_bytes: int | None = Field(
        None,
        ge=16 * 1024 * 1024,
        description="Most bytes of memory that requests take together: bodies, inputs, vectors and "
        "answers that are not read yet, shared equally by front ends; above it requests are refused "
        "with 503. Default: a quarter of what the machine, or its container, lets the process use.",
    )
    truncate_inputs: bool = Field(
        False, description="Cut over-long inputs when the request does not say `truncate`."
    )
    model_token_ids: StrList = Field(
        [],
        description="Model whose token-id inputs are its own vocabulary's ids instead of OpenAI's "
        "cl100k_base (repeatable).",
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds that work in flight may take after SIGTERM."
    )
    keep_alive_timeout_s: int = Field(
        75,
        ge=1,
        le=3600,
        description="Seconds a client may send no request's head, or read nothing of an answer.",
    )
    public_metrics: bool = Field(
        False,
        description="Show /metrics to everybody; default: only to this machine or with a key.",
    )
    metrics_port: Annotated[
        Annotated[int, Field(ge=0, le=65535)] | Literal["off"] | None,
        BeforeValidator(_port_or_off),
    ] = Field(
        None,
        description="Port of its own for /metrics, which `port` then does not show; 0 takes a free "
        "one, off shows it nowhere. Default: `port`.",
    )
    metrics_host: (
        Annotated[str, AfterValidator(_host_alone), AfterValidator(_only_with_metrics_port)] | None
    ) = Field(None, description="Address of `metrics_port`; default: that of `host`.")
    log_format: Literal["text", "json"] = Field("text", description="How log lines are written.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing by itself: `load_settings` alone decides where values come from."""
        return (init_settings,)

    def secrets(self) -> list[str]:
        """All API keys, from `api_key` and `api_key_file`.

        Raises:
            SettingError: the file cannot be read, or a key is empty or holds white space.
        """
        keys = [key.get_secret_value() for key in self.api_key]
        _check_keys("setting api_key", keys)
        if self.api_key_file is not None:
            try:
                lines = self.api_key_file.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no file name
                raise SettingError(unusable(f"api_key_file {self.api_key_file}", error)) from error
            file_keys = [line.strip() for line in lines]
            file_keys = [key for key in file_keys if key and not key.startswith("#")]
            if not file_keys:
                raise SettingError(f"api_key_file {self.api_key_file}: holds no key")
            _check_keys(f"api_key_file {self.api_key_file}", file_keys)
            keys += file_keys
        return keys

    def model_folders(self) -> tuple[Path, ...]:
        """Where models lie: those this software came with, and those that were installed."""
        if self.data_dir is None:
            return (self.models_dir,)
        return self.models_dir, self.installed_models_dir()

    def downloads_dir(self) -> Path:
        """Where models of the hub lie until they are imported; raises as `own_data_dir`."""
        return self.own_data_dir() / "downloads"

    def installed_models_dir(self) -> Path:
        """Where `models import` and `bundle install` put models.

        Raises:
            SettingError: there is no data folder.
        """
        return self.own_data_dir() / "models"

    def database_file(self) -> Path:
        """The SQLite file that is used when no other database is named.

        Raises:
            SettingError: there is no data folder.
        """
        return self.own_data_dir() / "embedding-server.db"

    def has_database(self) -> bool:
        """Whether keys and usage are kept: a database is named, or the file is there.

        Raises:
            SettingError: the data folder cannot be looked into.
        """
        if self.database_url is not None:
            return True
        if self.data_dir is None:
            return False
        try:
            self.database_file().stat()  # `exists` would take what cannot be looked at for absent
            return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:  # nobody may take that for a server without keys
            raise SettingError(unusable(f"data_dir {self.data_dir}", error)) from error

    def database(self) -> str:
        """The URL of the database; the default file's folder is made if need be.

        Raises:
            SettingError: the folder cannot be made.
        """
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        self.make_data_dir()
        return f"sqlite:///{self.database_file()}"

    def own_data_dir(self) -> Path:
        """The data folder.

        Raises:
            SettingError: there is none.
        """
        if self.data_dir is None:
            raise SettingError(
                "setting data_dir: this user has no home folder; name a folder with --data-dir "
                f"({ENV_PREFIX}DATA_DIR)"
            )
        return self.data_dir

    def make_data_dir(self) -> Path:
        """Make the data folder if need be, for nobody else to look into: it may hold keys.

        Raises:
            SettingError: there is none, or it cannot be made.
        """
        folder = self.own_data_dir()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as error:
            raise SettingError(f"data_dir {folder} is not a folder") from error
        except OSError as error:
            raise SettingError(unusable(f"data_dir {folder}", error)) from error
        return folder

    def lacks_data_dir(self) -> bool:
        """Whether a data folder was named and is not there; it may be made later.

        Raises:
            SettingError: it cannot be looked for.
        """
        if self.data_dir is None or "data_dir" not in self.model_fields_set:
            return False
        try:
            self.data_dir.lstat()
        except FileNotFoundError:
            return True
        except OSError as error:
            raise SettingError(unusable(f"data_dir {self.data_dir}", error)) from error
        return False

    def check_data_dir(self) -> None:
        """Refuse a data folder that was named and is not there, or that is none.

        Raises:
            SettingError: it is missing, or cannot be looked into.
        """
        named = f"data_dir {self.data_dir}"
        if self.lacks_data_dir():
            raise SettingError(f"{named} does not exist")
        if self.data_dir is None:
            return
        try:
            self.installed_models_dir().stat()
        except FileNotFoundError as error:
            if self.data_dir.is_symlink() and not self.data_dir.exists():
                raise SettingError(f"{named} is a link to nothing") from error
        except NotADirectoryError as error:
            raise SettingError(f"{named} is not a folder") from error
        except OSError as error:
            raise SettingError(unusable(named, error)) from error

    @property
    def listens_locally(self) -> bool:
        """Whether only this machine can connect."""
        return _is_local(self.host)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Host and port of /metrics, if it has a port of its own."""
        port = self.metrics_port
        return (self.metrics_host or self.host, port) if isinstance(port, int) else None

    @property
    def metrics_listen_locally(self) -> bool:
        """Whether only this machine can connect to the port of /metrics."""
        return _is_local(self.metrics_host or self.host)

    def check_exposure(self, *, asks_for_keys: bool) -> None:
        """Refuse to listen beyond this machine when anybody could use the server.

        Raises:
            SettingError: `host` or `metrics_host` is not loopback, no key is asked for and
                `allow_no_keys` is off.
        """
        if self.allow_no_keys or asks_for_keys:
            return
        hosts = [] if self.listens_locally else [self.host]
        if self.metrics_address and not (self.metrics_listen_locally or self.public_metrics):
            hosts.append(self.metrics_address[0])
        if not hosts:
            return
        make_one = own_command("keys", "create", "--name", "NAME")
        raise SettingError(
            f"refusing to listen on {hosts[0]} without API keys: anybody who reaches this address "
            f"could use the server. Make one with `{make_one}`, give one with "
            "--api-key-file or EMBEDDING_SERVER_API_KEY, or allow it with --allow-no-keys"
        )


def load_settings(
    flags: Mapping[str, Any] | None = None,
    config: Path | None = None,
) -> Settings:
    """Settings from flags, environment and an optional TOML file, in this order of precedence.

    Raises:
        SettingError: a value is out of bounds, a name is unknown, or the file cannot be read. The
            message names the setting and where it was set, never the value of a secret.
    """
    by_source = {
        "flags": dict(flags or {}),
        "environment": _read_environment(),
        "file": _read_toml(config) if config is not None else {},
    }
    values: dict[str, Any] = {}
    for given in reversed(by_source.values()):
        values |= given

    def spelled(name: str) -> str:
        source = next(source for source, given in by_source.items() if name in given)
        return {
            "flags": "--" + name.replace("_", "-"),
            "environment": ENV_PREFIX + name.upper(),
            "file": str(config),
        }[source]

    try:
        settings = Settings(**values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        name = str(problem["loc"][0])
        raise SettingError(f"setting {name} ({spelled(name)}): {problem['msg']}") from None
    for name in ("trust", "trust_revoked"):  # a rule must not depend on the folder of a command
        file = getattr(settings, name)
        if file is not None and not file.is_absolute() and name not in by_source["flags"]:
            raise SettingError(f"setting {name} ({spelled(name)}): must be an absolute path")
    return settings


def unknown_environment_variables(environ: Mapping[str, str]) -> list[str]:
    """Names that look like settings of this server but are none (most likely typing errors)."""
    known = {ENV_PREFIX + name.upper() for name in (*Settings.model_fields, "config")}
    return sorted(
        key
        for key, value in environ.items()
        if key.upper().startswith(ENV_PREFIX)
        and key.upper() not in known
        and not _is_kubernetes(key, value)
    )


def kubernetes_variables(environ: Mapping[str, str]) -> list[str]:
    """Names under which Kubernetes tells of Services that are called like this software.

    It sets them in every pod of a Service's namespace; they are no settings.
    """
    return sorted(key for key, value in environ.items() if _is_kubernetes(key, value))


def _is_kubernetes(name: str, value: str) -> bool:
    return _KUBERNETES.fullmatch(f"{name}={value}") is not None


def _read_environment() -> dict[str, Any]:
    given = EnvSettingsSource(Settings)()
    return {
        name: value
        for name, value in given.items()
        if not _is_kubernetes(ENV_PREFIX + name.upper(), str(value))
    }


def _check_keys(source: str, keys: list[str]) -> None:
    for number, key in enumerate(keys, start=1):
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingError(
                f"{source}: key number {number} is empty or holds white space or characters that "
                "cannot travel in a header"
            )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(unusable(f"configuration file {path}", error)) from error
    for name in table:
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingError(f"configuration file {path}: unknown setting {name}{hint}")
    return table


def _is_local(host: str) -> bool:
    return host == "localhost" or is_loopback(host)


def is_loopback(address: str) -> bool:
    """Whether only this machine has this IP address, also if it is IPv4 in IPv6's form."""
    try:
        read = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(read, "ipv4_mapped", None) or read).is_loopback
