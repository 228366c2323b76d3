"""The program of the job that publishes a run after its driver left; it starts after the arrays.

``python -m perseid.engines.slurm.publish_job RESULTS_URL`` does the work of
``perseid status --wait`` on a node of the cluster.
"""

from __future__ import annotations

import sys

from perseid.engines.driver import follow
from perseid.engines.slurm.slurm_engine import SlurmEngine
from perseid.errors import PerseidError
from perseid.pipeline.manifest import Manifest
from perseid.storage import Storage


def main(arguments: list[str]) -> int:
    """Publish the run; return the exit status, 0 if the run is complete."""
    (url,) = arguments
    engine = SlurmEngine()
    try:
        manifest = Manifest.load(Storage(url))
        with engine.attach(manifest) as handle:
            # Otherwise it would wait for this job to end.
            handle.publishes()
            done = follow(manifest, engine, handle, lambda event: None)
    except PerseidError as error:
        sys.stderr.write(f"perseid: {error}\n")
        return error.exit_code
    sys.stdout.write((done.incomplete or "complete") + "\n")
    return 0 if done.incomplete is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
