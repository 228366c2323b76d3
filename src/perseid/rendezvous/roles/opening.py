"""Connections whose first bytes tell what they will be."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from perseid.rendezvous import auth
from perseid.rendezvous.connection import Connection
from perseid.rendezvous.protocol import (
    FROM_CLIENT,
    MAGIC,
    VERSION,
    Beat,
    Challenge,
    Probe,
    Proof,
    Refusal,
    Register,
    Relay,
    decode,
)
from perseid.rendezvous.wire import (
    MAX_CLIENT_FRAME,
    FrameReader,
    ProtocolError,
    pack_frame,
)

if TYPE_CHECKING:
    pass

from perseid.rendezvous.roles.base import Opening, Role

log = logging.getLogger("perseid.rendezvous")


class OpeningRole(Role):
    """Tells the protocols apart by their first bytes, and lets workers prove their key."""

    def received(self, connection: Connection, data: bytes) -> None:
        """Collect the opening."""
        state = connection.state
        if not isinstance(state, Opening):
            state = connection.state = Opening()
        try:
            if state.reader is not None:
                self._frames(connection, state, state.reader.feed(data))
                return
            state.data += data
            if state.data.startswith(MAGIC):
                state.reader = FrameReader(MAX_CLIENT_FRAME)
                self._frames(connection, state, state.reader.feed(state.data[len(MAGIC) :]))
            elif not MAGIC.startswith(state.data):
                self.server.tcpunch.first_bytes(connection, state.data)
        except ProtocolError as error:
            self._close(connection)
            self.malformed(connection, error)

    def ended(self, connection: Connection) -> None:
        """It said nothing, or only half of it."""
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        self.server.hello_deadlines.drop(connection)

    def _frames(
        self, connection: Connection, state: Opening, frames: list[tuple[int, bytes]]
    ) -> None:
        for index, (kind, body) in enumerate(frames):
            if connection.handler is not self:
                members = self.server.members
                if connection.handler is members:
                    members.frames(connection, frames[index:])
                return
            if connection.closing or connection.closed:
                return
            self._frame(connection, state, kind, body)

    def _frame(self, connection: Connection, state: Opening, kind: int, body: bytes) -> None:
        frame = decode(FROM_CLIENT, kind, body)
        version = getattr(frame, "version", VERSION)
        if version != VERSION:
            reason = f"this server speaks version {VERSION}, not {version}"
            self.refuse(connection, Refusal.VERSION, reason)
        elif isinstance(frame, Proof) and state.hello is not None:
            self._proved(connection, state, frame)
        elif state.hello is not None and not isinstance(frame, Beat):
            raise ProtocolError(f"a {type(frame).__name__} instead of a proof")
        elif isinstance(frame, Register | Relay):
            self._hello(connection, state, frame, pack_frame(kind, body))
        elif isinstance(frame, Probe):
            connection.write(self.server.members.observed(connection).pack())
        elif isinstance(frame, Beat):
            connection.write(frame.pack())
        else:
            raise ProtocolError(f"a {type(frame).__name__} before a registration")

    def _hello(
        self, connection: Connection, state: Opening, hello: Register | Relay, raw: bytes
    ) -> None:
        if self.server.config.secret is None:
            self._admit(connection, state, hello, bytes(32))
            return
        state.hello, state.raw, state.nonce = hello, raw, auth.fresh_nonce()
        connection.write(Challenge(state.nonce).pack())

    def _proved(self, connection: Connection, state: Opening, proof: Proof) -> None:
        hello, secret = state.hello, self.server.config.secret
        if hello is None or secret is None:
            raise ProtocolError("a proof that was not asked for")
        key = auth.job_key(secret, hello.job)
        if not auth.same(auth.client_proof(key, state.raw, state.nonce), proof.mac):
            self.refuse(connection, Refusal.KEY, "the job key is wrong")
            return
        self._admit(connection, state, hello, auth.server_proof(key, state.raw, state.nonce))

    def _admit(
        self, connection: Connection, state: Opening, hello: Register | Relay, mac: bytes
    ) -> None:
        if isinstance(hello, Register):
            self.server.members.admit(connection, hello, mac, state.reader)
        else:
            self.server.relaying.admit(connection, hello, mac)
