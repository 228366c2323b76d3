"""TLS in front of a plain server, with a certificate authority made for the test."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """Signs certificates; its own lies in a file."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    file: Path
    """PEM, for ``AWS_CA_BUNDLE``."""

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new one."""
        certificate, key = _sign("perseid tests", None, None, [], days=2)
        file = folder / "authority.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(certificate, key, file)

    def context(self, folder: Path, names: Sequence[str], *, days: int = 1) -> ssl.SSLContext:
        """A server's side with a certificate for names or addresses, valid for so many days."""
        certificate, key = _sign("server", self.certificate, self.key, names, days=days)
        file = folder / f"server{days}{len(names)}{names[0]}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


@contextlib.contextmanager
def tls_front(context: ssl.SSLContext, target: tuple[str, int]) -> Iterator[int]:
    """Forward what comes over TLS to a plain server; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        over = threading.Event()
        thread = threading.Thread(target=_accept, args=(listener, context, target, over))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join(10)


def _accept(
    listener: socket.socket, context: ssl.SSLContext, target: tuple[str, int], over: threading.Event
) -> None:
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            plain, _ = listener.accept()
            plain.settimeout(30)
            threading.Thread(target=_serve, args=(plain, context, target), daemon=True).start()


def _serve(plain: socket.socket, context: ssl.SSLContext, target: tuple[str, int]) -> None:
    with (
        contextlib.suppress(OSError),
        plain,
        context.wrap_socket(plain, server_side=True) as client,
        socket.create_connection(target, 30) as server,
    ):
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join(30)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def _sign(
    name: str,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey | None,
    names: Sequence[str],
    *,
    days: int,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if names:
        alternatives = [_alternative(given) for given in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(issuer_key or key, hashes.SHA256()), key


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
