"""Mutual TLS 1.3 between the ranks of a job, which all hold one throw-away certificate and key.

Nobody vouches for that certificate: whoever made the job made it and gave it to the ranks alone, so
a peer is genuine if it presents exactly this one and proves that it has the key. Bytes are en- and
decrypted in memory, and the socket stays the caller's: its own time limits and polling apply.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from perseid.errors import BadInputError

_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----\s*", re.ASCII
)
_KEY = re.compile(
    r"-----BEGIN ((?:EC |RSA )?PRIVATE KEY)-----[\s\S]+?-----END \1-----\s*", re.ASCII
)
CIPHERTEXT_BYTES = 64 * 1024
"""Read from a socket at once: four records."""


class JobCertificate:
    """The certificate and private key of a job, both in one PEM text.

    Raises
    ------
    BadInputError
        The text does not hold one of each, or they do not belong together.
    """

    def __init__(self, pem: str) -> None:
        certificate, key = _CERTIFICATE.findall(pem), _KEY.search(pem)
        if len(certificate) != 1 or key is None:
            raise BadInputError(
                "a job's certificate is a PEM text with one certificate and its private key, as "
                "perseid.comm.make_certificate() gives it"
            )
        self._pem = certificate[0] + key[0]
        self._der = ssl.PEM_cert_to_DER_cert(certificate[0])
        self._contexts = {server: self._context(certificate[0], server) for server in (False, True)}

    def _context(self, certificate: str, server_side: bool) -> ssl.SSLContext:
        side = ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # no names: the certificate itself is compared
        context.verify_mode = ssl.CERT_REQUIRED
        if server_side:
            context.num_tickets = 0  # a connection is never resumed
        try:
            context.load_verify_locations(cadata=certificate)
            with _file_of(self._pem) as path:
                context.load_cert_chain(path)
        except (ssl.SSLError, ValueError) as error:
            raise BadInputError(
                f"this is not a certificate of a job with its key: {error}"
            ) from error
        return context

    def session(self, server_side: bool) -> TlsSession:
        """A session that is about to begin; the lower rank of a pair is the server."""
        return TlsSession(self._contexts[server_side], server_side, self._der)


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
def job_certificate(pem: str) -> JobCertificate:
    """The certificate of this PEM text; raises as `JobCertificate`."""
    return JobCertificate(pem)


class TlsSession:
    """One end of TLS, in memory: ciphertext in, ciphertext out, and plaintext on the other side."""

    def __init__(self, context: ssl.SSLContext, server_side: bool, certificate: bytes) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._certificate = certificate
        self.shut = False
        """Whether the peer said that it sends no more."""

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is complete. What is to be sent is in `take`.

        Raises
        ------
        OSError
            The peer speaks no TLS, or does not hold the job's certificate.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if self._tls.getpeercert(True) != self._certificate:
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

    def encrypt(self, data: bytes | bytearray | memoryview) -> None:
        """Plaintext to be sent; its ciphertext is in `take`."""
        done, view = 0, memoryview(data)
        while done < len(view):
            done += self._tls.write(view[done:])

    def end(self) -> None:
        """Say that no more is sent; the alert is in `take`."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
