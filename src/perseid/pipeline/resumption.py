"""What a run needs to go on: the model that it began with, and a catalogue that is whole."""

from __future__ import annotations

from dataclasses import replace

from perseid.errors import BadModelError, NotFoundError
from perseid.model.files import DEFAULT
from perseid.model.identity import identify
from perseid.pipeline import layout
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage

PARQUET_END = b"PAR1"
"""Last bytes of every whole Parquet file."""


def with_current_model(
    manifest: Manifest, *, allow_model_change: bool = False, own_default: bool = True
) -> Manifest:
    """The manifest of a run that goes on: its items name the model as it is now.

    Parameters
    ----------
    manifest
        Of a run that was begun before, perhaps by an earlier version.
    allow_model_change
        Take the model that is there now; ranks that use it make the run mixed, never complete.
    own_default
        Whether ``default`` is this installation's model. Where workers have packages of their own,
        they and the step before them know it.

    Raises
    ------
    BadModelError
        The model is not the one that the run began with, or is gone.
    """
    if manifest.script is not None:
        return manifest
    manifest = replace(manifest, allow_model_change=allow_model_change)
    if manifest.settings.model_url == DEFAULT and not own_default:
        return manifest
    now = identify(manifest.settings.model_url, manifest.settings.precision)
    difference = manifest.model.difference(now) if manifest.model else ""
    if difference and not allow_model_change:
        where = Storage(manifest.results_url).where()
        raise BadModelError(
            f"the model {now.uri} is not the one that the run at {where} began with "
            f"({difference}): put that one back, or go on with this one by "
            "--allow-model-change, which marks the run as mixed"
        )
    return replace(manifest, resumed_with=now)


def has_catalogue(store: Storage, manifest: Manifest, written: object = None) -> bool:
    """Whether the run's catalogue is there and whole, as far as its size and its end tell.

    `written` is its size in bytes when it was written, where that is known.
    """
    if manifest.script is not None:
        return True
    try:
        size = store.size(layout.CATALOGUE)
        end = store.get_range(layout.CATALOGUE, max(0, size - len(PARQUET_END)), len(PARQUET_END))
    except NotFoundError:
        return False
    return end == PARQUET_END and written in (None, size)
