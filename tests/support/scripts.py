"""Runs in script mode, begun and worked on as the engines do."""

from __future__ import annotations

from perseid.compat.scripts.script_job import script_job
from perseid.pipeline.initialize import Initialized, initialize
from perseid.pipeline.request import RunRequest


def begin_script(request: RunRequest, *, replace: bool = False) -> Initialized:
    """A run of a script that has begun."""
    return initialize(request, script_job(request), replace=replace)
