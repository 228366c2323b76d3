"""Print the outcome of a run, as text or JSON, and choose the exit status."""

from __future__ import annotations

import json
import sys

from perseid.api.run import Run
from perseid.errors import RunIncompleteError

COMPLETE, INCOMPLETE = 0, RunIncompleteError.exit_code


def show(run: Run, *, as_json: bool = False, quiet: bool = False) -> int:
    """Print the result; returns exit status 0 for a complete run and 3 for an incomplete one."""
    if as_json:
        print(json.dumps(run.summary, indent=1))
    elif not quiet:
        print(f"\n{run}")
    if run.incomplete:
        print(f"perseid: {run.incomplete}", file=sys.stderr)
        return INCOMPLETE
    return COMPLETE
