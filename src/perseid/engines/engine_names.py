"""Engines by name, as given in ``--engine``, ``perseid.run(engine=…)`` and ``driver.json``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from perseid.engines.base import Engine
from perseid.errors import BadInputError, NotFoundError
from perseid.jsontext import parse_json
from perseid.pipeline import layout
from perseid.storage import Storage

ENGINES = {
    "local": ("perseid.engines.local", "LocalEngine"),
    "slurm": ("perseid.engines.slurm", "SlurmEngine"),
    "dask": ("perseid.engines.dask", "DaskEngine"),
    "aws": ("perseid.aws.engine", "AwsEngine"),
}
"""Module and class of each engine; the module is imported when the engine is needed."""


def engine_class(name: str) -> type[Engine]:
    """The class of an engine; raises `BadInputError` for an unknown name."""
    # Before the import, so that a wrong name is not an ImportError.
    if name not in ENGINES:
        raise BadInputError(f"there is no engine {name!r}: choose one of {', '.join(ENGINES)}")
    module, attribute = ENGINES[name]
    return cast(type[Engine], getattr(importlib.import_module(module), attribute))


def engine_of_run(store: Storage, settings: Mapping[str, object] | None = None) -> Engine:
    """The engine that works, or last worked, on the run at this prefix.

    `settings` override what the run itself states about its engine.
    """
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    # The mark of a driver at work first; what the last engine left tells of earlier work.
    for key in (layout.DRIVER, layout.ENGINE):
        try:
            mark = parse_json(store.get(key))
        except (NotFoundError, ValueError):
            continue
        # Early marks of the local engine have a pid and no name.
        if isinstance(mark, dict) and ("pid" in mark or mark.get("engine") in ENGINES):
            return engine_class(mark.get("engine", "local")).configured(mark | given)
    # Version 0.1 left no mark of its runs on AWS: a run on S3 without a mark ran there.
    return engine_class("aws" if store.location.scheme == "s3" else "local").configured(given)
