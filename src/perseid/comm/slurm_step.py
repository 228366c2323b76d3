"""Ranks that ``srun`` started: their numbers, and how they find their rendezvous.

Slurm's environment says which rank a process is, of how many, and from which address the step was
launched. What it lacks is a secret that only the step's processes know. Rank 0 therefore writes
one, with the address of its rendezvous, to a file in the user's home folder, which clusters share
between their nodes.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from perseid.comm.certificates import certificate_if_installed, make_certificate
from perseid.errors import RendezvousError
from perseid.jsontext import parse_json
from perseid.linux import need_linux
from perseid.rendezvous import Config, EmbeddedServer, job_key
from perseid.rendezvous.net.dialing import own_address

FOLDER = "PERSEID_MEETING_FOLDER"
"""Environment variable that names another folder for the file."""
MEETING_SECONDS = 60.0
"""Seconds that a rank waits for rank 0's file. The tasks of a step start within seconds of each
other."""
POLL_SECONDS = 0.05
"""Seconds between two looks at the file, or at the ranks that are still registered."""


@dataclass(frozen=True)
class SlurmStep:
    """What Slurm says about the job step of this process."""

    name: str
    """Name that is unique on the cluster: job, step and number of restarts."""
    rank: int
    world_size: int
    launched_from: str
    """Address of the node from which the step was launched."""

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> SlurmStep | None:
        """The step that these environment variables describe; None if ``srun`` did not set them."""
        try:
            job, step = variables["SLURM_JOB_ID"], variables["SLURM_STEP_ID"]
            # A requeued job keeps its id: its ranks must not find the file of the earlier start.
            restarts = variables.get("SLURM_RESTART_COUNT", "0")
            return cls(
                f"slurm-{job}.{step}-{restarts}",
                int(variables["SLURM_PROCID"]),
                int(variables["SLURM_STEP_NUM_TASKS"]),
                variables.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"),
            )
        except (KeyError, ValueError):
            return None

    @contextmanager
    def meet(self, variables: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """A context that yields the environment variables by which the ranks find each other.

        Raises
        ------
        RendezvousError
            Rank 0 left no file: it did not start, or the nodes do not share the folder.
        """
        folder = Path(variables.get(FOLDER) or Path.home() / ".perseid" / "meetings")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        if self.rank:
            yield self._variables(*_read(path))
            return
        # Rank 0 runs the rendezvous, at an address that the other nodes can reach.
        need_linux("A rendezvous of ranks")
        secret, certificate = secrets.token_bytes(32), certificate_if_installed() or ""
        config = Config(
            host=own_address(self.launched_from),
            port=0, http_port=None, tcpunch=False, secret=secret,
            certificate=make_certificate() if certificate else None,
        )  # fmt: skip
        with EmbeddedServer(config) as server:
            key = job_key(secret, self.name).hex()
            _write(path, [server.address, key, certificate])
            try:
                yield self._variables(server.address, key, certificate)
                # The other ranks still need the relay, and the news of each other.
                while server.server.registry.members:
                    time.sleep(POLL_SECONDS)
            finally:
                path.unlink(missing_ok=True)

    def _variables(self, address: str, key: str, certificate: str) -> dict[str, str]:
        return {
            "PERSEID_JOB": self.name,
            "PERSEID_RANK": str(self.rank),
            "PERSEID_WORLD_SIZE": str(self.world_size),
            "PERSEID_RENDEZVOUS": address,
            "PERSEID_JOB_KEY": key,
            "PERSEID_JOB_CERTIFICATE": certificate,
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
        }


def _write(path: Path, meeting: Sequence[str]) -> None:
    """Write a file atomically, readable only by this user: it holds the job's key."""
    part = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(meeting, file)
    part.rename(path)


def _read(path: Path) -> tuple[str, str, str]:
    deadline = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < deadline:
        # On a network file system the file may appear before its content.
        with suppress(FileNotFoundError, ValueError, TypeError):
            address, key, certificate = parse_json(path.read_text())
            return str(address), str(key), str(certificate)
        time.sleep(POLL_SECONDS)
    raise RendezvousError(
        f"Rank 0 of this Slurm step left no {path} within {MEETING_SECONDS:g} s: set {FOLDER} to a "
        "folder that all nodes share."
    )
