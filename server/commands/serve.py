"""The command `embedding-server serve`.

Imports what it needs when it runs, so that mistakes and `--help` answer at once.
"""

from __future__ import annotations

import logging
import os

from server.commands.flags import TRUST, with_flags
from server.errors import SettingError
from server.program.termination import end_at_once_when_stopped, end_now
from server.settings import Settings, kubernetes_variables, unknown_environment_variables


@with_flags(*(name for name in Settings.model_fields if name not in TRUST))
def serve(settings: Settings) -> None:
    """Serve the models until SIGTERM or SIGINT."""
    end_at_once_when_stopped()  # until the server has handlers of its own
    # The workers share the cores among themselves; a thread pool in numpy would fight them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from server import logs
    from server.access.access import Access
    from server.engine.offering import Offering
    from server.engine.resident_models import ResidentModels
    from server.inference.cpu_cores import usable_cores

    logs.configure(settings.log_level, settings.log_format)
    log = logging.getLogger(__name__)
    if names := kubernetes_variables(os.environ):
        log.info("ignored, since Kubernetes sets them for Services: %s", ", ".join(names))
    for name in unknown_environment_variables(os.environ):
        if "KEY" in name.upper():
            raise SettingError(f"{name} names no setting, and looks as if it should set a key")
        log.warning("%s names no setting", name)
    if settings.lacks_data_dir():  # it may be made later, for example by `keys create`
        log.warning("data_dir %s does not exist", settings.data_dir)
    else:
        settings.check_data_dir()
    access = Access(settings)
    settings.check_exposure(asks_for_keys=access.asks_for_keys)
    models = ResidentModels.find(settings)
    models.start_reading()
    frontends = settings.frontends or models.suited_frontends(usable_cores())
    if frontends > 1:
        from server.frontends.supervisor import run_processes

        settings = settings.model_copy(update={"frontends": frontends})
        run_processes(settings, Offering(models), access)
    else:
        # Importing the HTTP framework takes about as long as reading a small model.
        from server.http.serving import run_server

        run_server(settings, Offering(models), access)
    if not models.is_ready:
        end_now()  # reading a large model may take minutes
