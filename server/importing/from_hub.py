"""A model of the Hugging Face hub to an installed model; needs the network."""

from __future__ import annotations

from collections.abc import Callable

from server.catalog.card import Card, PoolingMode
from server.delivery.hub import downloaded
from server.importing.importer import import_model
from server.importing.packages import is_installed
from server.importing.places import check_free
from server.importing.plan import Wishes
from server.settings import Settings


def import_from_hub(
    settings: Settings,
    repository: str,
    revision: str | None,
    name: str | None,
    report: Callable[[str], None],
    *,
    pooling: PoolingMode | None = None,
    normalize: bool | None = None,
) -> Card:
    """Fetch a repository at one commit and install what it holds.

    Args:
        repository: organisation/model.
        revision: commit, tag or branch; None: the newest.
        name: what clients call it; None: the repository's name.
        report: called with one line of progress at a time.
        pooling, normalize: for a repository that does not say them.

    Raises:
        StartupError: it cannot be fetched, or not be served as its publisher meant it.
    """
    name = name or repository.rsplit("/", 1)[-1]
    place = settings.installed_models_dir()
    # Before gigabytes are fetched.
    check_free(place, name, Wishes(), settings.models_dir)
    settings.make_data_dir()
    with_graph = not is_installed("torch")
    downloads = settings.downloads_dir()
    with downloaded(repository, revision, downloads, report, with_graph=with_graph) as (
        folder,
        commit,
    ):
        wishes = Wishes(
            name=name, origin=(repository, commit), pooling=pooling, normalize=normalize
        )
        return import_model(folder, place, wishes, report, beside=settings.models_dir)
