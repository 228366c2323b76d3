"""Turns the arguments of ``Communicator.join`` into the connections of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from perseid.comm import arguments
from perseid.comm.connection_pool import ConnectionPool
from perseid.comm.cost_model import Constants, Estimate, check_hint, choose_for_job
from perseid.comm.store_channel import ObjectStore
from perseid.errors import BadInputError, PerseidError
from perseid.rendezvous import Client, Endpoint, LossTimeouts, parse_key

TRANSPORTS = ("auto", "direct", "relay", "store")
JOIN_SECONDS = 60.0
"""Seconds that a rank waits for the others to register, by default."""
CALL_SECONDS = 300.0
"""Seconds that one call waits for another rank, by default."""
EXPECTED = ("allreduce", 1000.0)
"""Operation and bytes that a job is assumed to use mostly, if a hint is given without them."""


@dataclass(frozen=True)
class JoinRequest:
    """The arguments of ``Communicator.join``, checked; its docstring explains each field.

    Raises
    ------
    BadInputError
        A value has the wrong type or makes no sense; the message names the argument.
    """

    job: str
    rank: int
    world_size: int
    rendezvous: str | Endpoint | None
    key: bytes | str | None
    certificate: str | None
    generation: int
    transport: str
    hint: str | None
    expects: tuple[str, float]
    constants: Constants | str | Path | None
    deadline: float
    timeout: float
    losses: LossTimeouts
    oversubscribed: bool
    store: ObjectStore | None
    prefix: str
    wait: bool

    def __post_init__(self) -> None:
        arguments.text("job", self.job)
        arguments.text("prefix", self.prefix)
        # Converted, not only checked: NumPy integers are common here, and frames need plain ones.
        for name in ("rank", "world_size", "generation"):
            object.__setattr__(self, name, arguments.whole(name, getattr(self, name)))
        for name in ("deadline", "timeout"):
            arguments.seconds(name, getattr(self, name))
        if not (self.rendezvous is None or isinstance(self.rendezvous, Endpoint)):
            arguments.text("rendezvous", self.rendezvous)
        if not (self.key is None or isinstance(self.key, (bytes, str))):
            raise BadInputError(
                f"key must be 32 bytes or 64 hexadecimal digits, not a {type(self.key).__name__}"
            )
        if self.certificate is not None:
            arguments.text("certificate", self.certificate)
        if not 0 <= self.rank < self.world_size:
            raise BadInputError(f"rank {self.rank} is not in a world of {self.world_size} ranks")
        if not (isinstance(self.transport, str) and self.transport in TRANSPORTS):
            raise BadInputError(
                f"the transport is {', '.join(TRANSPORTS)}, "
                f"not {arguments.short_repr(self.transport)}"
            )
        self._check_hint()
        for name in ("put", "get", "delete"):
            if self.store is not None and not callable(getattr(self.store, name, None)):
                raise BadInputError(
                    f"store must have put, get and delete, as perseid.storage.Storage has; "
                    f"{arguments.shown(self.store)} has no {name}"
                )

    def _check_hint(self) -> None:
        # Also in a world of one, where nothing is chosen: a program is often tried there first.
        if self.hint is not None:
            check_hint(self.hint)
        pair = arguments.items("expects", self.expects)
        if len(pair) != 2:
            raise BadInputError(
                f"expects must be an operation and a number of bytes, "
                f"not {arguments.shown(self.expects)}"
            )
        arguments.text("the operation of expects", pair[0])
        if isinstance(pair[1], bool) or not isinstance(pair[1], Real):
            said = arguments.shown(pair[1])
            raise BadInputError(f"the bytes of expects must be a number, not {said}")

    def connect(self) -> tuple[ConnectionPool, Estimate | None]:
        """Register, and wait for the other ranks if that was asked for.

        Returns the connections and what the cost model chose for the hint; raises the errors of
        ``Communicator.join``.
        """
        choice = self._choice()
        transport = self.transport
        if choice is not None and choice.transport != "direct":
            # "direct" is left as it is: a pair that cannot connect falls back to the others that
            # the given transport allows.
            transport = choice.transport
        if transport == "store" and self.store is None:
            raise BadInputError("transport='store' needs a store to go through: give store=")
        client = None
        if self.rendezvous is not None:
            # With the store as transport, the rendezvous still tells which ranks are lost.
            client = self._register("auto" if transport == "store" else transport)
        elif self.world_size > 1 and transport != "store":
            raise BadInputError(
                f"{self.world_size} ranks need a rendezvous: give rendezvous='HOST:PORT'"
            )
        engine = ConnectionPool(
            client, self.rank, self.world_size, self.generation, self.timeout, self.losses
        )
        engine.oversubscribed = self.oversubscribed
        engine.encrypted = self.certificate is not None
        engine.store, engine.only_store = self.store, transport == "store"
        engine.prefix = f"{self.prefix}/{self.job}/{self.generation}"
        return engine, choice

    def _choice(self) -> Estimate | None:
        if self.hint is None or self.world_size == 1:
            return None
        constants = self.constants
        if constants is None:
            constants = Constants()
        elif not isinstance(constants, Constants):
            constants = Constants.load(constants)
        known = {"rendezvous": self.rendezvous is not None, "store": self.store is not None}
        return choose_for_job(
            self.hint, self.transport, self.world_size, self.expects, constants, **known
        )

    def _register(self, transport: str) -> Client:
        # One deadline for both: registering, and waiting for the others.
        end = time.monotonic() + self.deadline
        assert self.rendezvous is not None
        client = Client.register(
            self.rendezvous,
            self.job,
            self.rank,
            self.world_size,
            key=parse_key(self.key) if isinstance(self.key, str) else self.key,
            generation=self.generation,
            transport=transport,
            certificate=self.certificate,
            link_timeout=self.losses.link,
            silence_timeout=self.losses.silence,
            deadline=self.deadline,
        )
        try:
            if self.wait:
                client.wait_complete(max(0.0, end - time.monotonic()))
        # A rank that gives up must not stay registered, or the others would wait for it.
        except PerseidError:
            client.close()
            raise
        return client


def environment_arguments(env: Mapping[str, str] = os.environ) -> dict[str, object]:
    """The arguments of ``join`` that ``perseid comm run`` set in the environment.

    Raises
    ------
    BadInputError
        A variable that must be a number is not one.
    """
    found: dict[str, object] = {
        "job": env.get("PERSEID_JOB", "job"),
        "rendezvous": env.get("PERSEID_RENDEZVOUS"),
        "key": env.get("PERSEID_JOB_KEY"),
        "certificate": env.get("PERSEID_JOB_CERTIFICATE") or None,
        "oversubscribed": env.get("PERSEID_OVERSUBSCRIBED") == "1",
    }
    try:
        found["rank"] = int(env.get("PERSEID_RANK", "0"))
        found["world_size"] = int(env.get("PERSEID_WORLD_SIZE", "1"))
    except ValueError:
        raise BadInputError("PERSEID_RANK and PERSEID_WORLD_SIZE must be whole numbers") from None
    for name in ("death_timeout", "link_timeout", "silence_timeout"):
        variable = f"PERSEID_{name.upper()}"
        if (given := env.get(variable)) is not None:
            try:
                found[name] = float(given)
            except ValueError:
                raise BadInputError(
                    f"{variable} must be a number of seconds, not {given!r}"
                ) from None
    return found
