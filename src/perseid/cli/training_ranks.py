"""The ranks of ``perseid train --world-size``: starting them, and joining as one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from perseid.comm.slurm_step import SlurmStep
from perseid.errors import BadInputError, RunInterruptedError


def starts_ranks(world_size: int) -> bool:
    """Whether this process is not a rank itself, so that it has to start all of them.

    Raises
    ------
    BadInputError
        The number is below 1, or differs from that in the environment.
    """
    if world_size < 1:
        raise BadInputError(f"--world-size is {world_size}: at least 1 is needed")
    given = os.environ.get("PERSEID_WORLD_SIZE") if "PERSEID_RENDEZVOUS" in os.environ else None
    step = SlurmStep.of(os.environ)
    if given is None and step is not None and step.world_size > 1:
        given = str(step.world_size)
    if given is not None and given != str(world_size):
        raise BadInputError(f"--world-size is {world_size}, but the environment has {given} ranks")
    return given is None and world_size > 1


def start(world_size: int, threads: int | None) -> int:
    """Run this same command as every rank on this machine; returns the exit status."""
    from perseid.comm.launch import run_local
    from perseid.engines.stopping import StopRequests

    # The cores are divided, because ranks that compete for them wait for the slowest.
    each = threads or max(1, len(os.sched_getaffinity(0)) // world_size)
    command = ["-P", "-m", "perseid", *sys.argv[1:], "--threads", str(each)]
    with StopRequests() as stop:
        statuses = run_local(command, world_size, stopped=lambda: stop.count)
    failed = [status for status in statuses.values() if status]
    return next((status if status > 0 else 128 - status for status in failed), 0)


@contextmanager
def joined(world_size: int | None) -> Iterator[int]:
    """Join torch's default process group as a rank until the context ends; yields the rank."""
    if world_size is None:
        yield 0
        return
    from torch.distributed import (  # type: ignore[attr-defined]
        HashStore,
        destroy_process_group,
        get_rank,
        init_process_group,
    )

    import perseid.torch  # registers the backend

    with ExitStack() as stack:
        step = SlurmStep.of(os.environ)
        if world_size > 1 and "PERSEID_RENDEZVOUS" not in os.environ and step is not None:
            os.environ |= stack.enter_context(step.meet(os.environ))
        if world_size == 1:
            init_process_group("perseid", store=HashStore(), rank=0, world_size=1)
        else:
            init_process_group("perseid", init_method="perseid://")
        try:
            yield get_rank()
        except RunInterruptedError:
            raise  # all ranks stop together
        except BaseException as error:
            perseid.torch.leave(error)
            raise
        finally:
            destroy_process_group()
