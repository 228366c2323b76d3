"""The throw-away certificate of a job, made by whoever makes the job."""

from __future__ import annotations

import base64
import hmac
import secrets
import warnings
from datetime import UTC, datetime, timedelta

from perseid.errors import BadInputError, NotInstalledError

VALID = timedelta(days=31)
"""Longer than any job."""
SKEW = timedelta(days=1)
"""Clocks of the ranks' hosts may be wrong by so much."""
_NONCE, _TAG = 16, 32
"""Bytes before and behind what is sealed."""


def make_certificate() -> str:
    """A fresh certificate with its private key, as one PEM text: a secret of one job.

    Give it to all ranks (``Communicator.join(certificate=…)``) by the way that the job's key goes.

    Raises
    ------
    NotInstalledError
        The package ``cryptography`` is missing. Only who makes the certificate needs it.

    Examples
    --------
    >>> from perseid.comm import make_certificate
    >>> make_certificate().splitlines()[0]
    '-----BEGIN CERTIFICATE-----'
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise NotInstalledError(
            "to encrypt what ranks send each other, whoever starts them needs the package "
            "cryptography: pip install 'perseid[tls]'"
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "perseid job")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return (certificate.public_bytes(serialization.Encoding.PEM) + secret).decode()


def certificate_if_installed() -> str | None:
    """A certificate of a job whose ranks are on several machines: what they send each other is
    encrypted unless that cannot be; then None, with a warning.

    Examples
    --------
    >>> certificate_if_installed() is None
    False
    """
    try:
        return make_certificate()
    except NotInstalledError:
        warnings.warn(
            "What the ranks send each other between machines is not encrypted: "
            "pip install 'perseid[tls]'",
            stacklevel=2,
        )
        return None


def seal(certificate: str, key: bytes) -> str:
    """Encrypt a job's certificate under the job's key, so that it may lie in objects of a run.

    Whoever has the key reads it by `unseal`; to others it says nothing. With the standard library
    alone, which is all that workers have: HMAC-SHA256 in counter mode as a stream cipher, and the
    whole authenticated by HMAC-SHA256 under another key (encrypt, then MAC).
    """
    nonce = secrets.token_bytes(_NONCE)
    hidden = nonce + _xor(certificate.encode(), key, nonce)
    return base64.b64encode(hidden + _tag(hidden, key)).decode()


def unseal(sealed: str, key: bytes) -> str:
    """The reverse of `seal`.

    Raises
    ------
    BadInputError
        It was sealed under another key, or was changed since.
    """
    try:
        data = base64.b64decode(sealed, validate=True)
    except ValueError:
        data = b""
    hidden, tag = data[:-_TAG], data[-_TAG:]
    if not hmac.compare_digest(tag, _tag(hidden, key)):
        raise BadInputError("the certificate of this job was sealed under another key")
    return _xor(hidden[_NONCE:], key, hidden[:_NONCE]).decode()


def _xor(data: bytes, key: bytes, nonce: bytes) -> bytes:
    own, stream = hmac.digest(key, b"perseid seal stream", "sha256"), bytearray()
    while len(stream) < len(data):
        stream += hmac.digest(own, nonce + len(stream).to_bytes(8, "big"), "sha256")
    return bytes(one ^ other for one, other in zip(data, stream, strict=False))


def _tag(data: bytes, key: bytes) -> bytes:
    return hmac.digest(hmac.digest(key, b"perseid seal tag", "sha256"), data, "sha256")
