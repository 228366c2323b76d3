"""The program of one task of an array: it works on its ranks in worker processes.

The batch script of `SlurmEngine` runs it: ``python -m perseid.engines.slurm.task RESULTS_URL
SUBMISSION``. Limits, retries, logs and REPORT lines are those of the local engine.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

from perseid.engines.block import done_since, work_on_block
from perseid.engines.local.local_options import LocalOptions
from perseid.engines.retry import RetryPolicy
from perseid.engines.slurm.submission import Submission, put_report
from perseid.engines.stopping import StopRequests
from perseid.engines.worker_command import WORKER
from perseid.errors import PerseidError
from perseid.pipeline.events import Event, RankEvent, RankState
from perseid.pipeline.manifest import Manifest
from perseid.pipeline.resumption import with_current_model
from perseid.storage import Storage

TIME_IS_UP = "the time limit of its Slurm task was near, so the rank was not started"


def main(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Work on the ranks of this task; return the exit status."""
    url, name = arguments
    index = int(environment["SLURM_ARRAY_TASK_ID"])
    store = Storage(url)
    try:
        submission = Submission.get(store, name)
        manifest = Manifest.load(store)
        manifest = with_current_model(manifest, allow_model_change=submission.allow_model_change)
        ranks = list(submission.of_task(index))
        # Started again after a preemption or the loss of its node: ranks may be done already.
        if int(environment.get("SLURM_RESTART_COUNT", "0")):
            former = submission.former
            ranks = [rank for rank in ranks if not done_since(manifest, rank, former.get(rank, 0))]
        if ranks:
            _work(store, manifest, submission, index, ranks)
    except PerseidError as error:
        sys.stderr.write(f"perseid: {error}\n")
        return error.exit_code
    return 0


def _work(
    store: Storage, manifest: Manifest, submission: Submission, index: int, ranks: list[int]
) -> None:
    options = LocalOptions(
        workers=submission.workers,
        threads=submission.threads,
        memory_mb=submission.memory_mb,
        timeout=submission.timeout,
        # Memory that the user did not choose is raised, by a further submission.
        retry=RetryPolicy(submission.retries, same_memory=submission.raises is None),
        command=submission.command or WORKER,
    )
    items = [manifest.item(rank) for rank in ranks]
    near_its_limit: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: near_its_limit.append(number))

    def leave() -> str:
        return TIME_IS_UP if near_its_limit else ""

    with StopRequests() as stop:
        report = work_on_block(items, options, _say, stop, leave)
    # Also after a stop: attempts of a canceled task are billed like all others.
    put_report(store, submission.name, index, report)


def _say(event: Event) -> None:
    """Write an event to the task's own output; what the ranks print is in their logs."""
    if isinstance(event, RankEvent) and event.state is not RankState.RUNNING:
        sys.stdout.write(f"rank {event.rank} {event.state} {event.message}".rstrip() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
