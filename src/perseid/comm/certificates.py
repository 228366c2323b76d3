"""The throw-away certificate of a job, made by whoever makes the job."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta

from perseid.errors import NotInstalledError

VALID = timedelta(days=31)
"""Longer than any job."""
SKEW = timedelta(days=1)
"""Clocks of the ranks' hosts may be wrong by so much."""


def make_certificate(key: bytes | None = None) -> str:
    """A fresh certificate with its private key, as one PEM text: a secret of one job.

    Give it to all ranks (``Communicator.join(certificate=…)``) by the way that the job's key goes.

    Parameters
    ----------
    key
        The job's key, 32 bytes: the private key is encrypted under it (PKCS #8, PBES2 of RFC 8018),
        so that the text may lie where others read it. Ranks that join with the job's key open it.
        None: the private key is not encrypted.

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
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "perseid job")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(key.hex().encode())
        if key
        else serialization.NoEncryption(),
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
