"""The real command line, with workers that misbehave as ``FAULTS`` says."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import perseid.engines.local.local_engine
import perseid.engines.local.local_map as local_map
from perseid.cli import main

WORKER = (sys.executable, str(Path(__file__).with_name("faulty_worker.py")))
real = perseid.engines.local.local_engine.options_of


def options_of(request):
    return replace(real(request), command=WORKER)


if __name__ == "__main__":
    perseid.engines.local.local_engine.options_of = options_of
    local_map.GRACE_SECONDS = float(os.environ.get("GRACE", local_map.GRACE_SECONDS))
    sys.exit(main())
