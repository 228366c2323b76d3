"""Connections whose first bytes tell what they will be."""

from __future__ import annotations

from perseid.rendezvous import auth
from perseid.rendezvous.connection import Connection
from perseid.rendezvous.protocol import (
    FROM_CLIENT,
    MAGIC,
    VERSION,
    Beat,
    Challenge,
    Frame,
    Probe,
    Proof,
    Refusal,
    Register,
    Relay,
    decode,
)
from perseid.rendezvous.roles.base import Opening, Role
from perseid.rendezvous.wire import (
    MAX_CLIENT_FRAME,
    FrameReader,
    ProtocolError,
    pack_frame,
)

HELLOS = (Register, Relay)
"""Frames that ask to be let in."""
NO_MAC = bytes(32)
"""The server's proof where there are no keys."""


class OpeningRole(Role):
    """Tells the protocols apart by their first bytes, and lets workers prove their key."""

    def received(self, connection: Connection, data: bytes) -> None:
        """Collect the opening."""
        state = connection.state
        if not isinstance(state, Opening):
            state = connection.state = Opening()
        try:
            if state.reader is None:
                state.data += data
                if not state.data.startswith(MAGIC):
                    if not MAGIC.startswith(state.data):
                        self.server.tcpunch.first_bytes(connection, state.data)
                    return
                state.reader = FrameReader(MAX_CLIENT_FRAME)
                data = state.data[len(MAGIC) :]
            self._frames(connection, state, state.reader.feed(data))
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
        elif isinstance(frame, Beat):
            connection.write(frame.pack())
        elif state.hello is not None:
            self._proved(connection, state, state.hello, frame)
        elif isinstance(frame, HELLOS):
            if self.server.config.secret is None:
                self._admit(connection, state, frame, NO_MAC)
            else:
                self._challenge(connection, state, frame, pack_frame(kind, body))
        elif isinstance(frame, Probe):
            connection.write(self.server.members.observed(connection).pack())
        else:
            raise ProtocolError(f"a {type(frame).__name__} before a registration")

    def _challenge(
        self, connection: Connection, state: Opening, hello: Register | Relay, raw: bytes
    ) -> None:
        state.hello, state.raw, state.nonce = hello, raw, auth.fresh_nonce()
        connection.write(Challenge(state.nonce).pack())

    def _proved(
        self, connection: Connection, state: Opening, hello: Register | Relay, proof: Frame
    ) -> None:
        secret = self.server.config.secret
        if secret is None or not isinstance(proof, Proof):
            raise ProtocolError(f"a {type(proof).__name__} instead of a proof")
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
