"""The program of the job that publishes a run that was left: it depends on the run's arrays.

``python -m perseid.engines.slurm.publish_job RESULTS_URL`` does on a node of the cluster what
``perseid status --wait`` does.
"""

from __future__ import annotations

import sys

from perseid.engines.driver import follow
from perseid.engines.slurm.slurm_engine import SlurmEngine
from perseid.errors import PerseidError
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage


def main(arguments: list[str]) -> int:
    """Publish the run; the exit status, 0 where it is complete."""
    (url,) = arguments
    engine = SlurmEngine()
    try:
        manifest = Manifest.load(Storage(url))
        with engine.attach(manifest) as handle:
            handle.publishes()
            done = follow(manifest, engine, handle, lambda event: None)
    except PerseidError as error:
        sys.stderr.write(f"perseid: {error}\n")
        return error.exit_code
    sys.stdout.write((done.incomplete or "complete") + "\n")
    return 0 if done.incomplete is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
