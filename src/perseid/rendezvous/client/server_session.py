"""The handshake with the server: request, challenge, proof, welcome."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from perseid.errors import (
    JobKeyRefusedError,
    RendezvousError,
    RendezvousRefusedError,
    RendezvousUnreachableError,
)
from perseid.rendezvous.protocol import (
    FROM_SERVER,
    MAGIC,
    Challenge,
    ControlFrame,
    Proof,
    RefusalCode,
    Refused,
    Register,
    RelayRequest,
    Welcome,
    auth,
    decode,
)
from perseid.rendezvous.protocol.wire import MAX_SERVER_FRAME, FrameReader, ProtocolError

RECEIVE_BYTES = 64 * 1024
"""Bytes requested by one read."""


@dataclass(slots=True)
class ServerSession:
    """A connection to the server whose request was granted."""

    sock: socket.socket
    """Blocking at first."""
    welcome: Welcome
    reader: FrameReader
    round_trip: float
    """Seconds from the request to the server's first answer."""


class ServerHandshake:
    """The client's side of the handshake with the server, without I/O.

    Parameters
    ----------
    hello
        The request.
    key
        The job's key, or None.
    """

    def __init__(self, hello: Register | RelayRequest, key: bytes | None) -> None:
        self._key = key
        self._opening = hello.pack()
        self._job = hello.job
        self._nonce: bytes | None = None

    def first(self) -> bytes:
        """The first bytes of the connection."""
        return MAGIC + self._opening

    def answer(self, frame: ControlFrame) -> bytes | Welcome:
        """Process a frame; return bytes to send, or the welcome that ends the handshake.

        Raises
        ------
        JobKeyRefusedError, RendezvousRefusedError
            The server refused, or does not have the key itself.
        ProtocolError
            The frame has no place in the handshake.
        """
        if isinstance(frame, Refused):
            raise refusal(frame, self._job)
        if isinstance(frame, Challenge) and self._nonce is None:
            if self._key is None:
                raise JobKeyRefusedError(
                    f"The rendezvous needs the key of job {self._job!r}, and none was given; "
                    "`perseid rendezvous key` prints it."
                )
            self._nonce = frame.nonce
            return Proof(auth.client_proof(self._key, self._opening, frame.nonce)).pack()
        if isinstance(frame, Welcome):
            self._check_server(frame)
            return frame
        raise ProtocolError(f"the server answered with {type(frame).__name__}")

    def _check_server(self, welcome: Welcome) -> None:
        if self._key is None:
            return
        # An impostor without the key would leave out the challenge and hope that nobody checks.
        if self._nonce is None:
            raise JobKeyRefusedError(
                f"A key was given for job {self._job!r}, but this rendezvous asks for none; "
                "is it another server, or one that was started with --open?"
            )
        expected = auth.server_proof(self._key, self._opening, self._nonce)
        if not auth.macs_equal(expected, welcome.mac):
            raise JobKeyRefusedError(
                f"The rendezvous could not prove that it has the key of job {self._job!r}."
            )


def refusal(frame: Refused, job: str) -> RendezvousRefusedError:
    """The error for a refusal."""
    if frame.code is RefusalCode.KEY:
        return JobKeyRefusedError(f"The rendezvous refused the key of job {job!r}: {frame.reason}.")
    return RendezvousRefusedError(
        f"The rendezvous refused job {job!r}: {frame.reason} ({frame.code.name.lower()})."
    )


def open_session(
    sock: socket.socket, hello: Register | RelayRequest, key: bytes | None, deadline: float
) -> ServerSession:
    """Send a request on a connected socket and wait for the welcome.

    Parameters
    ----------
    deadline
        On ``time.monotonic``'s clock.

    Raises
    ------
    JobKeyRefusedError, RendezvousRefusedError
        The server refused.
    RendezvousUnreachableError
        The server did not answer in time, closed, or speaks another protocol.
    """
    opener = ServerHandshake(hello, key)
    reader = FrameReader(MAX_SERVER_FRAME)
    began = time.monotonic()
    round_trip = 0.0
    try:
        _send(sock, opener.first(), deadline)
        while True:
            frame = receive_frame(sock, reader, deadline)
            # Of the first answer only: a proof costs both sides computing time.
            round_trip = round_trip or time.monotonic() - began
            answer = opener.answer(frame)
            if isinstance(answer, Welcome):
                return ServerSession(sock, answer, reader, round_trip)
            _send(sock, answer, deadline)
    except RendezvousError:
        raise
    except (ProtocolError, OSError) as error:
        name = sock.getpeername() if _connected(sock) else ("the server",)
        raise RendezvousUnreachableError(
            f"{name[0]} did not answer as a rendezvous server does: {error}; is the port right?"
        ) from None


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _send(sock: socket.socket, data: bytes, deadline: float) -> None:
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    sock.sendall(data)


def receive_frame(sock: socket.socket, reader: FrameReader, deadline: float) -> ControlFrame:
    """Read the next frame and no byte beyond it: a stream may follow.

    Raises
    ------
    ProtocolError
        The server closed, or sent an invalid frame.
    OSError
        The deadline passed or the connection broke.
    """
    while True:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        # Never beyond the frame: after `RelayReady` the next byte is the peer's.
        data = sock.recv(min(reader.needed, RECEIVE_BYTES))
        if not data:
            raise ProtocolError("it closed the connection")
        for kind, body in reader.feed(data):
            return decode(FROM_SERVER, kind, body)
