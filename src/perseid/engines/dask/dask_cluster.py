"""Connect to a user's Dask cluster, compare its version, and have it keep a run's model."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from perseid.engines.dask.dask_worker import ModelKeeper, version
from perseid.errors import BadInputError, RunError
from perseid.libraries import library_error

CONNECT_SECONDS = 10


def connected(address: str | None) -> Any:
    """A `distributed.Client` of the scheduler at this address.

    Raises
    ------
    BadInputError
        No address was given.
    NotInstalledError
        Dask's `distributed` is missing.
    RunError
        No scheduler answers at this address.
    """
    if not address:
        raise BadInputError(
            "no Dask cluster is named: give the scheduler's address (--scheduler "
            "tcp://host:8786), or DaskEngine(client)"
        )
    distributed = _distributed()
    try:
        return distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise RunError(f"no Dask scheduler answers at {address}: {error}") from None


def refuse_other_versions(client: Any) -> None:
    """Raise `RunError` if the cluster has no workers, or some with another version of perseid."""
    # On every worker: tasks are pickled, so both sides must have the same code.
    found = client.run(version)
    if not found:
        raise RunError("the Dask cluster has no workers: start some, or scale it up")
    other = {worker: there for worker, there in found.items() if there != version()}
    if other:
        worker, there = next(iter(other.items()))
        raise RunError(
            f"{len(other)} of {len(found)} Dask workers have another perseid than this process "
            f"(first {worker}: {there or 'none'}, here {version()}): install the same "
            "version in their environment and start them again"
        )


@contextmanager
def kept_models(client: Any, run_id: str) -> Iterator[None]:
    """Have the cluster's workers keep the run's model while the context is open."""
    # Dask accepts only subclasses of its `WorkerPlugin`, which is imported here at the latest.
    kind = type("ModelKeeper", (ModelKeeper, _distributed().WorkerPlugin), {})
    keeper = kind(run_id)
    client.register_plugin(keeper)
    try:
        yield
    finally:
        with suppress(Exception):  # the cluster may be gone already
            client.unregister_worker_plugin(keeper.name)


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise library_error(
            error, "the engine dask needs Dask's distributed: pip install 'perseid[dask]'"
        ) from error
