"""Job keys and proofs: HMAC-SHA256 (RFC 2104) over fresh nonces of both sides.

The server holds one secret and derives each job's key from it, so a worker that is given its job's
key can join no other job. A proof covers the whole request and both nonces: a replayed request
meets another nonce and is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from perseid.errors import JobKeyRefusedError
from perseid.rendezvous.protocol.wire import INSTANCE_BYTES, NONCE_BYTES

KEY_BYTES = 32
"""Length of a job key: the output of SHA-256."""


def fresh_nonce() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(NONCE_BYTES)


def fresh_instance() -> bytes:
    """8 random bytes that identify the registration of one process."""
    return secrets.token_bytes(INSTANCE_BYTES)


def job_key(secret: bytes, job: str) -> bytes:
    """The key of one job, 32 bytes, from the server's secret."""
    return hmac.digest(secret, b"perseid job key\0" + job.encode(), "sha256")


def parse_key(text: str) -> bytes:
    """A job key from its 64 hexadecimal digits.

    Raises
    ------
    JobKeyRefusedError
        It is something else.
    """
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise JobKeyRefusedError(
            f"A job key has {2 * KEY_BYTES} hexadecimal digits, not {len(text.strip())} "
            "characters; `perseid rendezvous key --key-file FILE JOB` prints it."
        )
    return key


def client_proof(key: bytes, opening: bytes, server_nonce: bytes) -> bytes:
    """A client's answer to a challenge; ``opening`` is its request as sent, header included."""
    return hmac.digest(key, b"client\0" + server_nonce + opening, "sha256")


def server_proof(key: bytes, opening: bytes, server_nonce: bytes) -> bytes:
    """The server's proof, in its welcome, that it has the key as well."""
    return hmac.digest(key, b"server\0" + server_nonce + opening, "sha256")


def peer_key(key: bytes | None, job: str) -> bytes:
    """The key between the workers of one job.

    Without a job key it is derived from the job's name alone. It then keeps out workers of other
    jobs, but no attacker.
    """
    if key is None:
        return hashlib.sha256(b"perseid open job\0" + job.encode()).digest()
    return hmac.digest(key, b"perseid peers\0" + job.encode(), "sha256")


def macs_equal(one: bytes, other: bytes) -> bool:
    """Compare two MACs in constant time."""
    return hmac.compare_digest(one, other)
