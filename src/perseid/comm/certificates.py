"""The throw-away TLS certificate of a job, made by the program that starts the job."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta

from perseid.errors import NotInstalledError
from perseid.libraries import library_error

VALID = timedelta(days=31)
"""Validity of a certificate: longer than any job runs."""
SKEW = timedelta(days=1)
"""How far the clocks of the ranks' hosts may be wrong: validity begins that much earlier."""


def make_certificate(key: bytes | None = None) -> str:
    """Make a certificate with its private key, as one PEM text: the secret of one job.

    Pass it to all ranks (``Communicator.join(certificate=…)``) in the same way as the job's key.

    Parameters
    ----------
    key
        The job's key, 32 bytes, with which the private key is encrypted (PKCS #8, PBES2 of RFC
        8018): the text may then be stored where others can read it, and ranks that join with the
        job's key can open it. None: the private key is not encrypted.

    Raises
    ------
    NotInstalledError
        The package ``cryptography`` is missing. Only the program that makes the certificate needs
        it.

    Examples
    --------
    >>> from perseid.comm import make_certificate
    >>> make_certificate().splitlines()[0]
    '-----BEGIN CERTIFICATE-----'
    """
    # Imported here, since workers, which only use a certificate, do without the package.
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        raise library_error(
            error,
            "to encrypt what ranks send each other, whoever starts them needs the package "
            "cryptography: pip install 'perseid[tls]'",
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
        # Self-signed: a peer must present exactly this certificate, which is also the only
        # authority that ranks trust.
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
    """A certificate for a job on several machines, or None, with a warning, if none can be made.

    Without a certificate, the ranks' connections are not encrypted.

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
