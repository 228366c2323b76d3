"""Check that a resumed run still has the model that it began with."""

from __future__ import annotations

from dataclasses import replace

from perseid.errors import BadModelError
from perseid.model.files import DEFAULT
from perseid.model.identity import CPU, identify
from perseid.pipeline.manifest import Manifest
from perseid.plaintext import option
from perseid.storage import Storage


def with_current_model(
    manifest: Manifest, *, allow_model_change: bool = False, own_default: bool = True
) -> Manifest:
    """The manifest of a resumed run, whose items name the model as it is now.

    Parameters
    ----------
    manifest
        Manifest of the run, which an earlier version may have begun.
    allow_model_change
        Use the model that is there now. Ranks that use it make the run mixed, so it never becomes
        complete.
    own_default
        Whether ``default`` is this installation's model. If workers have packages of their own,
        only they and the step that starts them know their default model.

    Raises
    ------
    BadModelError
        The model is not the one that the run began with, or is gone.
    """
    # A script brings its own model, about which nothing is known here.
    if manifest.script is not None:
        return manifest
    manifest = replace(manifest, allow_model_change=allow_model_change)
    # On AWS, `default` is the model in the deployed package, which this machine cannot read.
    if manifest.settings.model_url == DEFAULT and not own_default:
        return manifest
    settings = manifest.settings
    now = identify(
        settings.model_url,
        settings.precision,
        manifest.model.device if manifest.model else CPU,
        folder=settings.options.model_path or "",
    )
    difference = manifest.model.difference(now) if manifest.model else ""
    if difference and not allow_model_change:
        where = Storage(manifest.results_url).where()
        raise BadModelError(
            f"the model {now.uri} is not the one that the run at {where} began with "
            f"({difference}): put that one back, or go on with this one by "
            f"{option('allow_model_change', True)}, which marks the run as mixed"
        )
    return replace(manifest, resumed_with=now)
