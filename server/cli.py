"""The command `embedding-server`.

Imports what a command needs when it runs, so that `--version` and mistakes answer at once.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from server import __version__
from server.bundle_commands import bundle_app
from server.errors import EmbeddingServerError, SelfTestFailed, SettingError
from server.flags import with_flags
from server.key_commands import keys_app, usage
from server.model_commands import models_app
from server.settings import Settings, kubernetes_variables, unknown_environment_variables
from server.termination import INTERRUPTED, raise_when_terminated
from server.text_commands import dimensions, embed, fit_rotation

MISTAKE = 2  # exit code of every error that a user can mend

app = typer.Typer(
    name="embedding-server",
    help="OpenAI's embeddings API from transformer models on local disk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(models_app, name="models")
app.add_typer(bundle_app, name="bundle")
app.add_typer(keys_app, name="keys")
app.command("usage")(usage)
models_app.command("fit-rotation")(fit_rotation)
app.command("embed")(embed)
app.command("dimensions")(dimensions)


def main() -> None:
    """Entry point: errors of ours become one line and exit code 2; signals, see `termination`."""
    raise_when_terminated()
    try:
        app()
    except EmbeddingServerError as error:
        print(f"embedding-server: {error.message}", file=sys.stderr)
        raise SystemExit(MISTAKE) from None
    except KeyboardInterrupt:  # typer turns it into the same code while a command runs
        raise SystemExit(INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"embedding-server {__version__}")
        raise typer.Exit


@app.command()
@with_flags(*Settings.model_fields)
def serve(settings: Settings) -> None:
    """Serve the models until SIGTERM or SIGINT."""
    # The workers share the cores among themselves; a thread pool in numpy would fight them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from server import logs
    from server.access.access import Access
    from server.engine.served_models import ServedModels
    from server.inference.cpu_cores import usable_cores

    logs.configure(settings.log_level, settings.log_format)
    log = logging.getLogger(__name__)
    if names := kubernetes_variables(os.environ):
        log.info("ignored, since Kubernetes sets them for Services: %s", ", ".join(names))
    for name in unknown_environment_variables(os.environ):
        if "KEY" in name.upper():
            raise SettingError(f"{name} names no setting, and looks as if it should set a key")
        log.warning("%s names no setting", name)
    try:
        settings.check_data_dir()
    except SettingError as error:  # it may be made later, for example by `keys create`
        log.warning("%s", error.message)
    access = Access(settings)
    settings.check_exposure(asks_for_keys=access.asks_for_keys)
    models = ServedModels.find(settings)
    models.start_reading()
    frontends = settings.frontends or models.suited_frontends(usable_cores())
    if frontends > 1:
        from server.frontends.supervisor import serve as run_processes

        run_processes(settings.model_copy(update={"frontends": frontends}), models, access)
        return
    # Importing the HTTP framework takes about as long as reading a small model.
    from server.serving import serve as run_server

    run_server(settings, models, access)


@app.command()
@with_flags("model", "models_dir", "data_dir", "threads", "device", "dtype", "min_parity")
def doctor(
    settings: Settings,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Prove that serving opens no socket beyond this machine."),
    ] = False,
) -> None:
    """Test this installation: files, vectors against the models' references, memory, threads."""
    if offline:
        # Before anything starts a thread: only a process with one can leave its network.
        from server.network_namespace import enter_network_namespace

        enter_network_namespace()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from server.doctor import examine

    settings.check_data_dir()
    bad = 0
    for finding in examine(settings, offline=offline):
        verdict = "ok " if finding.good else "BAD"
        print(f"{verdict}  {finding.subject}: {finding.text}", flush=True)
        bad += not finding.good
    if bad:
        raise SelfTestFailed(f"{bad} of the checks failed")
