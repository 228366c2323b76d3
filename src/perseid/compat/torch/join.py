"""Join a job: from torch's ``init_process_group`` to a group of ranks."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
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

from perseid.comm.certificates import certificate_if_installed, make_certificate
from perseid.comm.shared_world import SharedWorld
from perseid.compat.torch.process_group import ProcessGroupPerseid
from perseid.errors import BadInputError, PerseidError
from perseid.jsontext import parse_json
from perseid.rendezvous import Config, EmbeddedServer, Endpoint, job_key
from perseid.rendezvous.net.dialing import own_address

LEAVE_SECONDS = 10.0
"""Seconds that the rank which runs the rendezvous waits for the others to leave."""
_POLL_SECONDS = 0.005
_SUBGROUPS = 1 << 31
"""Smallest id of a sub-group; such ids are derived from the names of the groups."""


class JoinedJob:
    """One of torch's jobs that this process has joined.

    Parameters
    ----------
    world
        The ranks of the job.
    server
        The rendezvous, if this process runs it.
    default
        Whether the job is that of torch's default process group, of which others are parts.
    """

    def __init__(self, world: SharedWorld, server: EmbeddedServer | None, default: bool) -> None:
        self.world, self._server, self.default = world, server, default
        self._left = threading.Lock()
        self._idents: dict[int, str] = {}

    def subgroup(self, name: str, ranks: list[int]) -> ProcessGroupPerseid:
        """Create the group of some of the ranks, which must all give the same name.

        Raises
        ------
        BadInputError
            Another group has the same id.
        """
        # From the name and the ranks, so that all agree on an id without a message.
        digest = hashlib.sha256(f"{name} {ranks}".encode()).digest()
        ident = _SUBGROUPS | int.from_bytes(digest[:4], "little") >> 2
        if self._idents.setdefault(ident, name) != name:
            raise BadInputError(f"The groups {name} and {self._idents[ident]} have the same id.")
        return ProcessGroupPerseid(self.world.group(ident, ranks), lambda: None)

    def leave(self, error: BaseException | None = None) -> None:
        """Leave the job, once; an error is passed on to the other ranks.

        The rank that runs the rendezvous then waits for the others, whose goodbyes go through it.
        It leaves before it waits, so that a rank which still expects a message from it learns of
        that at once.
        """
        if not self._left.acquire(blocking=False):
            return
        with contextlib.suppress(ValueError):
            _joined.remove(self)
        # Sends are completed first, since peers may still be receiving them.
        self.world.finish(error)
        self.world.close(error)
        if self._server is None:
            return
        if error is None:
            end = time.monotonic() + LEAVE_SECONDS
            while self._server.server.registry.members and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
        self._server.__exit__(None, None, None)


_joined: list[JoinedJob] = []
"""The jobs in which this process is now."""
_generations: dict[str, int] = {}
"""By job of the environment, the number of times that this process has joined it, less one. Each
time is a separate attempt."""
_watching: set[int] = set()
"""Process ids whose end is watched; a forked child inherits the hooks but is in no job."""


def create(options: Any, _: Any = None) -> ProcessGroupPerseid:
    """Create a group; ``torch.distributed`` calls this.

    A part of our default group is created without messages. If the default group has another
    backend, each group is a job of its own.
    """
    ranks = list(options.global_ranks_in_group or ())
    world = next((one for one in _joined if one.default), None)
    if ranks and world is not None:
        return world.subgroup(options.group_id, ranks)
    member = _join(options, default=not ranks)
    _joined.append(member)
    _watch_end()
    return ProcessGroupPerseid(member.world.world, member.leave)


def leave(error: BaseException | None = None) -> None:
    """Leave all jobs of this process. With an error, all other ranks raise ``PeerLostError`` with
    its text at once."""
    for member in list(_joined):
        member.leave(error)


def _join(options: Any, default: bool) -> JoinedJob:
    store, rank, size = options.store, options.group_rank, options.group_size
    seconds = options.timeout.total_seconds()
    # A single rank needs no rendezvous; torch creates such groups routinely.
    if size == 1:
        alone = SharedWorld.join(job="alone", rank=0, world_size=1, rendezvous=None, key=None)
        return JoinedJob(alone, None, default)
    # torch has one timeout for joining and for calls.
    common = {"rank": rank, "world_size": size, "timeout": seconds, "deadline": seconds}
    if default and "PERSEID_RENDEZVOUS" in os.environ:
        # `perseid comm run` has started a server for these ranks already.
        job = os.environ.get("PERSEID_JOB", "job")
        attempt = _generations[job] = _generations.get(job, -1) + 1
        return JoinedJob(SharedWorld.join(**common, generation=attempt), None, default)
    # A store outlives its process groups, so entries of earlier groups must not be read.
    name = f"perseid/{store.add(f'perseid/attempts-of-{rank}', 1)}"
    server = _serve(store, name, default) if rank == 0 else None
    try:
        address, job, key, certificate = parse_json(store.get(name))
        world = SharedWorld.join(
            **common, rendezvous=address, job=job, key=key, certificate=certificate
        )
    except BaseException:
        if server is not None:
            server.__exit__(None, None, None)
        raise
    return JoinedJob(world, server, default)


def _serve(store: Any, name: str, default: bool) -> EmbeddedServer:
    """Start a rendezvous in this process and announce it in torch's store."""
    host = _own_host(default)
    local = host == "127.0.0.1"
    # A random name and secret per job: nobody else on the network can join.
    secret, job = secrets.token_bytes(32), f"torch-{secrets.token_hex(8)}"
    # Encryption is for the network; loopback does not need it.
    certificate = None if local else certificate_if_installed()
    config = Config(
        host=host if local else "", port=0, http_port=None, tcpunch=False, secret=secret,
        certificate=make_certificate() if certificate else None,
    )  # fmt: skip
    server = EmbeddedServer(config).__enter__()
    endpoint = Endpoint(host, server.server.port)
    address = f"{endpoint}#{server.server.fingerprint}" if certificate else str(endpoint)
    store.set(name, json.dumps([address, job, job_key(secret, job).hex(), certificate]))
    return server


def _own_host(default: bool) -> str:
    """The address of this machine for the other ranks; 127.0.0.1 if all of them are here.

    Rank 0 of the default group is at ``MASTER_ADDR``. The first rank of another group may be on
    another machine; its address is the one from which it reaches ``MASTER_ADDR``.
    """
    here = os.environ.get("LOCAL_WORLD_SIZE")  # set by torchrun: ranks on this machine
    if here is not None and here == os.environ.get("WORLD_SIZE"):
        return "127.0.0.1"
    master = os.environ.get("MASTER_ADDR") or socket.gethostname()
    try:
        *_, found = socket.getaddrinfo(master, None, type=socket.SOCK_STREAM)[0]
    except OSError:
        return master
    # A name that resolves to loopback means that all ranks are on this machine.
    if str(found[0]).startswith("127.") or found[0] == "::1":
        return "127.0.0.1"
    return str(found[0]) if default else own_address(str(found[0]))


def rendezvous_of_environment(url: str, **_: Any) -> Iterator[tuple[Any, int, int]]:
    """Handle ``init_method="perseid://"``: ``perseid comm run`` has set rank and world size.

    The ranks may have no address that others can reach, so each rank has its own store.
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
    """Leave all jobs when this process ends, with the exception that ended it, if any."""
    process = os.getpid()
    if process in _watching:
        return
    _watching.add(process)
    # atexit functions do not learn of the exception, so it is noted when it is printed.
    former, failed = sys.excepthook, []

    def note(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        failed.append(error)
        former(kind, error, trace)

    def leave_at_exit() -> None:
        if os.getpid() == process:
            with contextlib.suppress(PerseidError):
                leave(failed[0] if failed else None)

    sys.excepthook = note
    atexit.register(leave_at_exit)


def _forget_in_child() -> None:
    """Forget the jobs in a forked child, since the parent is in them."""
    _joined.clear()


os.register_at_fork(after_in_child=_forget_in_child)
