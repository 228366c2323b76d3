"""The throw-away certificate of a job, made by whoever makes the job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from perseid.errors import NotInstalledError

VALID = timedelta(days=31)
"""Longer than any job."""
SKEW = timedelta(days=1)
"""Clocks of the ranks' hosts may be wrong by so much."""


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
