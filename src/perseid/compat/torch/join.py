"""From ``init_process_group`` to a group of ranks."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from torch.distributed import HashStore  # type: ignore[attr-defined]

from perseid.comm.shared_world import SharedWorld
from perseid.compat.torch.process_group import ProcessGroupPerseid
from perseid.errors import BadInputError, PerseidError
from perseid.rendezvous import Config, EmbeddedServer, job_key

LEAVE_SECONDS = 10.0
"""How long the rank whose process holds the rendezvous waits for the others to leave."""
_POLL_SECONDS = 0.005
_SUBGROUPS = 1 << 31
"""From here on ids are those of sub-groups, made of their names."""


class Membership:
    """This process' place in one job of torch's.

    Parameters
    ----------
    world
        The ranks.
    server
        The rendezvous, if this process holds it.
    """

    def __init__(self, world: SharedWorld, server: EmbeddedServer | None) -> None:
        self.world, self._server = world, server
        self._left = threading.Lock()
        self._idents: dict[int, str] = {}

    def subgroup(self, name: str, ranks: list[int]) -> ProcessGroupPerseid:
        """The group of some of the ranks; all of them give the same name.

        Raises
        ------
        BadInputError
            Its id is that of another group.
        """
        digest = hashlib.sha256(f"{name} {ranks}".encode()).digest()
        ident = _SUBGROUPS | int.from_bytes(digest[:4], "little") >> 2
        if self._idents.setdefault(ident, name) != name:
            raise BadInputError(f"The groups {name} and {self._idents[ident]} have one id.")
        return ProcessGroupPerseid(self.world.group(ident, ranks), lambda: None)

    def leave(self, error: BaseException | None = None) -> None:
        """Say goodbye, once; with an error the others are told of it.

        The rank that holds the rendezvous waits for the others: their goodbyes go through it.
        """
        if not self._left.acquire(blocking=False):
            return
        if _members.get("current") is self:
            del _members["current"]
        self.world.finish(error)
        if self._server is not None and error is None:
            end = time.monotonic() + LEAVE_SECONDS
            while not self.world.others_left() and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
        self.world.close(error)
        if self._server is not None:
            self._server.__exit__(None, None, None)


_members: dict[str, Membership] = {}
"""The membership of this process under ``current``, while there is one."""
_generations: dict[str, int] = {}
"""How often this process has joined a job of the environment: every time is an attempt of its
own."""


def create(options: Any, _: Any = None) -> ProcessGroupPerseid:
    """What ``torch.distributed`` calls for a new group."""
    ranks = list(options.global_ranks_in_group or ())
    current = _members.get("current")
    if ranks and current is not None:
        return current.subgroup(options.group_id, ranks)
    rank, size = options.group_rank, options.group_size
    member = _join(options.store, rank, size, options.timeout.total_seconds())
    _members["current"] = member
    _watch_end()
    return ProcessGroupPerseid(member.world.world, member.leave)


def leave(error: BaseException | None = None) -> None:
    """Leave the job that this process is in, if it is in one; with an error all others raise
    ``PeerLostError`` with its text at once."""
    current = _members.get("current")
    if current is not None:
        current.leave(error)


def _join(store: Any, rank: int, size: int, seconds: float) -> Membership:
    if size == 1:
        alone = SharedWorld.join(job="alone", rank=0, world_size=1, rendezvous=None, key=None)
        return Membership(alone, None)
    common = {"rank": rank, "world_size": size, "timeout": seconds, "deadline": seconds}
    if "PERSEID_RENDEZVOUS" in os.environ:
        job = os.environ.get("PERSEID_JOB", "job")
        attempt = _generations[job] = _generations.get(job, -1) + 1
        return Membership(SharedWorld.join(**common, generation=attempt), None)
    # A store outlives its process groups: what an earlier one left there must not be read.
    name = f"perseid/{store.add(f'perseid/attempts-of-{rank}', 1)}"
    server = _serve(store, name) if rank == 0 else None
    try:
        address, job, key = store.get(name).decode().split()
        world = SharedWorld.join(**common, rendezvous=address, job=job, key=key)
    except BaseException:
        if server is not None:
            server.__exit__(None, None, None)
        raise
    return Membership(world, server)


def _serve(store: Any, name: str) -> EmbeddedServer:
    """Hold a rendezvous in this process and tell the others by torch's store."""
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    try:
        here = socket.gethostbyname(host)
    except OSError:
        here = host
    secret, job = secrets.token_bytes(32), f"torch-{secrets.token_hex(8)}"
    local = "127.0.0.1" if here.startswith("127.") else ""
    config = Config(host=local, port=0, http_port=None, tcpunch=False, secret=secret)
    server = EmbeddedServer(config).__enter__()
    address = f"{here}:{server.server.port}"
    store.set(name, f"{address} {job} {job_key(secret, job).hex()}")
    return server


def rendezvous_of_environment(url: str, **_: Any) -> Iterator[tuple[Any, int, int]]:
    """``init_method="perseid://"``: rank and size are those that ``perseid comm run`` set.

    The ranks may have no address that others reach, so that torch's store is each rank's own.
    """
    try:
        rank, size = int(os.environ["PERSEID_RANK"]), int(os.environ["PERSEID_WORLD_SIZE"])
    except (KeyError, ValueError):
        raise BadInputError(
            f"{url} needs PERSEID_RANK and PERSEID_WORLD_SIZE in the environment, as "
            "`perseid comm run` sets them."
        ) from None
    yield HashStore(), rank, size


def _watch_end() -> None:
    """A process that ends by an exception tells the others so; any other leaves at its end."""
    if _members.get("watched") is not None:
        return
    _members["watched"] = _members["current"]
    former, failed = sys.excepthook, []

    def note(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        failed.append(error)
        former(kind, error, trace)

    def leave_at_exit() -> None:
        with contextlib.suppress(PerseidError):
            leave(failed[0] if failed else None)

    sys.excepthook = note
    atexit.register(leave_at_exit)
