"""New connections: tell the protocols apart, and let workers prove that they have the job's key."""

from __future__ import annotations

from dataclasses import dataclass

from perseid.rendezvous.protocol import (
    FROM_CLIENT,
    MAGIC,
    VERSION,
    Challenge,
    ControlFrame,
    Heartbeat,
    Probe,
    Proof,
    RefusalCode,
    Register,
    RelayRequest,
    auth,
    decode,
)
from perseid.rendezvous.protocol.wire import (
    MAC_BYTES,
    MAX_CLIENT_FRAME,
    FrameReader,
    ProtocolError,
    pack_frame,
)
from perseid.rendezvous.server.client_connection import ClientConnection
from perseid.rendezvous.server.context import ServerContext
from perseid.rendezvous.server.member_role import MemberRole
from perseid.rendezvous.server.relay_role import RelayRole
from perseid.rendezvous.server.role import Role
from perseid.rendezvous.server.tcpunch_role import TcpunchRole

TLS_HANDSHAKE = 0x16
"""First byte of a TLS connection (RFC 8446, section 5.1); no name of a TCPunch client has it."""
NO_MAC = bytes(MAC_BYTES)
"""The proof that an open server sends."""


@dataclass(slots=True)
class Applicant:
    """A connection that has not been handed to another role yet."""

    data: bytes = b""
    """What was received before the protocol was known."""
    reader: FrameReader | None = None
    """Set once the connection began with ``MAGIC``."""
    hello: Register | RelayRequest | None = None
    """The request that was answered with a challenge."""
    raw: bytes = b""
    """That request as received: the proof covers it."""
    nonce: bytes = b""
    """The challenge."""


class AdmissionRole(Role):
    """First role of each connection.

    Parameters
    ----------
    members, relays, tcpunch
        The roles that an admitted connection is handed to.
    """

    def __init__(
        self,
        context: ServerContext,
        members: MemberRole,
        relays: RelayRole,
        tcpunch: TcpunchRole,
    ) -> None:
        super().__init__(context)
        self._members, self._relays, self._tcpunch = members, relays, tcpunch

    def received(self, connection: ClientConnection, data: bytes) -> None:
        """Collect the first bytes, then frames."""
        applicant = connection.state
        if not isinstance(applicant, Applicant):
            certificate = self.context.certificate
            if certificate is not None and data[0] == TLS_HANDSHAKE and not connection.encrypted:
                connection.start_tls(certificate.session(), data)
                return
            applicant = connection.state = Applicant()
        try:
            if applicant.reader is None:
                applicant.data += data
                if not applicant.data.startswith(MAGIC):
                    # The first bytes may come one by one: only bytes that differ tell another
                    # protocol.
                    if not MAGIC.startswith(applicant.data):
                        self._tcpunch.first_bytes(connection, applicant.data)
                    return
                applicant.reader = FrameReader(MAX_CLIENT_FRAME)
                data = applicant.data[len(MAGIC) :]
            self._frames(connection, applicant, applicant.reader.feed(data))
        except ProtocolError as error:
            self.ended(connection)
            self.malformed(connection, error)

    def ended(self, connection: ClientConnection) -> None:
        """The client closed before it was admitted."""
        self.context.hello_deadlines.drop(connection)

    def _frames(
        self, connection: ClientConnection, applicant: Applicant, frames: list[tuple[int, bytes]]
    ) -> None:
        for index, (kind, body) in enumerate(frames):
            # A frame of the same packet admitted the client; what follows is for its new role.
            if connection.handler is not self:
                if connection.handler is self._members:
                    self._members.handle(connection, frames[index:])
                return
            if connection.closing or connection.closed:
                return
            self._frame(connection, applicant, kind, body)

    def _frame(
        self, connection: ClientConnection, applicant: Applicant, kind: int, body: bytes
    ) -> None:
        frame = decode(FROM_CLIENT, kind, body)
        version = getattr(frame, "version", VERSION)
        if version != VERSION:
            reason = f"this server speaks version {VERSION}, not {version}"
            self.refuse(connection, RefusalCode.VERSION, reason)
        elif isinstance(frame, Heartbeat):
            connection.write(frame.pack())
        # Once challenged, a client can do nothing but prove its key.
        elif applicant.hello is not None:
            self._check_proof(connection, applicant, applicant.hello, frame)
        elif isinstance(frame, (Register, RelayRequest)):
            if self.context.config.secret is None:
                self._admit(connection, applicant, frame, NO_MAC)
            else:
                self._challenge(connection, applicant, frame, pack_frame(kind, body))
        elif isinstance(frame, Probe):
            connection.write(self.context.observed(connection).pack())
        else:
            raise ProtocolError(f"a {type(frame).__name__} before a registration")

    @staticmethod
    def _challenge(
        connection: ClientConnection,
        applicant: Applicant,
        hello: Register | RelayRequest,
        raw: bytes,
    ) -> None:
        applicant.hello, applicant.raw, applicant.nonce = hello, raw, auth.fresh_nonce()
        connection.write(Challenge(applicant.nonce).pack())

    def _check_proof(
        self,
        connection: ClientConnection,
        applicant: Applicant,
        hello: Register | RelayRequest,
        proof: ControlFrame,
    ) -> None:
        secret = self.context.config.secret
        if secret is None or not isinstance(proof, Proof):
            raise ProtocolError(f"a {type(proof).__name__} instead of a proof")
        key = auth.job_key(secret, hello.job)
        if not auth.macs_equal(auth.client_proof(key, applicant.raw, applicant.nonce), proof.mac):
            self.refuse(connection, RefusalCode.KEY, "the job key is wrong")
            return
        # The server proves the key, too: a worker must not talk to whoever took over its address.
        mac = auth.server_proof(key, applicant.raw, applicant.nonce)
        self._admit(connection, applicant, hello, mac)

    def _admit(
        self,
        connection: ClientConnection,
        applicant: Applicant,
        hello: Register | RelayRequest,
        mac: bytes,
    ) -> None:
        if isinstance(hello, Register):
            self._members.admit(connection, hello, mac, applicant.reader)
        else:
            self._relays.admit(connection, hello, mac)
