"""TLS 1.3: mutual between the ranks of a job, and of a server that its clients know by fingerprint.

The ranks of a job all hold one throw-away certificate and key.

Nobody vouches for that certificate: whoever made the job made it and gave it to the ranks alone, so
a peer is genuine if it presents exactly this one and proves that it has the key. Bytes are en- and
decrypted in memory, and the socket stays the caller's: its own time limits and polling apply.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from perseid.errors import BadInputError, RendezvousRefusedError, RendezvousUnreachableError
from perseid.rendezvous.net.endpoint import Endpoint

_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----\s*", re.ASCII
)
_KEY = re.compile(
    r"-----BEGIN ((?:EC |RSA |ENCRYPTED )?PRIVATE KEY)-----[\s\S]+?-----END \1-----\s*", re.ASCII
)
CIPHERTEXT_BYTES = 64 * 1024
"""Read from a socket at once: four records."""


class JobCertificate:
    """The certificate and private key of a job, both in one PEM text.

    Parameters
    ----------
    pem
        The text.
    password
        Opens the private key if the text holds it encrypted.

    Raises
    ------
    BadInputError
        The text does not hold one of each, they do not belong together, or the password does not
        open the key.
    """

    def __init__(self, pem: str, password: str = "") -> None:
        certificate, key = _parts(pem, "job's", "perseid.comm.make_certificate() gives it")
        self._der = ssl.PEM_cert_to_DER_cert(certificate)
        self._contexts: dict[bool, ssl.SSLContext] = {}
        for server_side in (False, True):
            try:
                context = _context(server_side, certificate + key, password)
                context.check_hostname = False  # no names: the certificate itself is compared
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(cadata=certificate)
            except (ssl.SSLError, ValueError) as error:
                raise BadInputError(
                    f"this is not a certificate of a job with its key: {error}"
                ) from error
            self._contexts[server_side] = context

    def session(self, server_side: bool) -> TlsSession:
        """A session that is about to begin; the lower rank of a pair is the server."""
        return TlsSession(self._contexts[server_side], server_side, self._der)


def _parts(pem: str, owner: str, source: str) -> tuple[str, str]:
    """The certificate and the private key in a PEM text; `owner` and `source` are for a refusal."""
    certificate, key = _CERTIFICATE.findall(pem), _KEY.search(pem)
    if len(certificate) != 1 or key is None:
        raise BadInputError(
            f"a {owner} certificate is a PEM text with one certificate and its private key, as "
            f"{source}"
        )
    return certificate[0], key[0]


def _context(server_side: bool, pem: str, password: str = "") -> ssl.SSLContext:
    """A context of TLS 1.3 that presents the certificate in a PEM text."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if server_side:
        context.num_tickets = 0  # a connection is never resumed
    with _file_of(pem) as path:
        # Always with a password: without one, OpenSSL would ask for it in a terminal.
        context.load_cert_chain(path, password=password)
    return context


@contextlib.contextmanager
def _file_of(text: str) -> Iterator[str]:
    """A file with this text that no other user can read: OpenSSL takes keys from files only."""
    if hasattr(os, "memfd_create"):  # it never touches a disk
        descriptor = os.memfd_create("perseid-job", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.pem"  # the folder is this user's alone
        path.write_text(text)
        yield str(path)


@functools.lru_cache(maxsize=8)
def job_certificate(pem: str, password: str = "") -> JobCertificate:
    """The certificate of this PEM text; raises as `JobCertificate`."""
    return JobCertificate(pem, password)


class TlsSession:
    """One end of TLS, in memory: ciphertext in, ciphertext out, and plaintext on the other side."""

    def __init__(
        self, context: ssl.SSLContext, server_side: bool, certificate: bytes | None
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._certificate = certificate
        self.shut = False
        """Whether the peer said that it sends no more."""

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is complete. What is to be sent is in `take`.

        Once it is complete, calling it again changes nothing.

        Raises
        ------
        OSError
            The peer speaks no TLS, or does not hold the job's certificate.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if self._certificate is not None and self._tls.getpeercert(True) != self._certificate:
            raise ssl.SSLError("the peer's certificate is another one")
        return True

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Ciphertext that came."""
        self._incoming.write(data)

    def take(self) -> bytes:
        """Ciphertext that is to be sent."""
        return self._outgoing.read()

    def decrypt(self, into: bytearray | memoryview) -> int:
        """Plaintext of what was fed; 0 where no whole record is left, or none will come."""
        try:
            return cast(int, self._tls.read(len(into), cast(Any, into)))
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLZeroReturnError:
            self.shut = True
            return 0

    def decrypt_all(self) -> bytes:
        """All plaintext of what was fed."""
        found, part = bytearray(), bytearray(CIPHERTEXT_BYTES)
        while count := self.decrypt(part):
            found += memoryview(part)[:count]
        return bytes(found)

    def encrypt(self, data: bytes | bytearray | memoryview) -> None:
        """Plaintext to be sent; its ciphertext is in `take`."""
        done, view = 0, memoryview(data)
        while done < len(view):
            done += self._tls.write(view[done:])

    def end(self) -> None:
        """Say that no more is sent; the alert is in `take`."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()


# --- a server that its clients know by fingerprint ------------------------------------------


class ServerCertificate:
    """The certificate and private key of a rendezvous server, both in one PEM text.

    Raises
    ------
    BadInputError
        The text does not hold one of each, or they do not belong together.
    """

    def __init__(self, pem: str) -> None:
        certificate, key = _parts(pem, "server's", "`perseid comm certificate` prints it")
        self.fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()
        """By which clients know it: 64 hexadecimal digits behind the server's address."""
        try:
            self._context = _context(True, certificate + key)
        except ssl.SSLError as error:
            raise BadInputError(f"this is no certificate with its key: {error}") from error

    def session(self) -> TlsSession:
        """One client's session, which is about to begin; clients have no certificates."""
        return TlsSession(self._context, True, None)


class PinnedSocket(ssl.SSLSocket):
    """A client's socket to a server that was known by its fingerprint; it behaves as a plain one.

    OpenSSL reads one record at a time, so after `detach` the stream goes on where the last record
    that was read ended.
    """

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As of a plain socket: ``BlockingIOError`` where nothing is here."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def send(self, data: Any, flags: int = 0) -> int:
        """As of a plain socket: ``BlockingIOError`` where it takes nothing."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None


def secured(sock: socket.socket, endpoint: Endpoint, deadline: float) -> socket.socket:
    """The same connection in TLS to the server with the endpoint's fingerprint.

    Raises
    ------
    RendezvousRefusedError
        It has another certificate.
    RendezvousUnreachableError
        It does not speak TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nobody vouches for the certificate, and names and dates do not matter: it is the one or not.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.sslsocket_class = PinnedSocket
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        safe = context.wrap_socket(sock)
    except OSError as error:
        raise RendezvousUnreachableError(
            f"The server at {endpoint} does not answer in TLS ({error}); was it started with "
            "--certificate?"
        ) from None
    found = hashlib.sha256(safe.getpeercert(True) or b"").hexdigest()
    if found != endpoint.fingerprint:
        safe.close()
        raise RendezvousRefusedError(
            f"The server at {endpoint} has another certificate than the one in its address: "
            f"{found}, not {endpoint.fingerprint}."
        )
    return safe
