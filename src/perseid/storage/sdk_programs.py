"""The program of a profile's ``credential_process``, held to a deadline and to its format.

botocore waits for it without limit, and tells of an answer in another format only what its JSON
parser says. Imports botocore, so `perseid.storage.credentials` imports this module only with it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from botocore.credentials import (
    AssumeRoleProvider,
    CredentialResolver,
    ProcessProvider,
    ProfileProviderBuilder,
)
from botocore.exceptions import CredentialRetrievalError
from botocore.session import Session

from perseid.jsontext import parse_json

SHOWN = 60
"""Most characters of a wrong answer that a message shows."""
EXPECTED = (
    "not the JSON object with Version, AccessKeyId and SecretAccessKey that credential_process "
    "must print"
)


def hold_programs(
    resolver: CredentialResolver, session: Session, cache: Any, region: str | None, seconds: float
) -> None:
    """Let each program that a chain may start end within `seconds`, or fail with a sentence.

    That includes the program of a profile that is only the source of a role's credentials.
    """
    builder = _Builder(session, seconds, cache=cache, region_name=region)
    for place, provider in enumerate(resolver.providers):
        if isinstance(provider, ProcessProvider):
            name = session.get_config_variable("profile") or "default"
            resolver.providers[place] = builder._create_process_provider(name)
        elif isinstance(provider, AssumeRoleProvider):
            provider._profile_provider_builder = builder


class _Builder(ProfileProviderBuilder):  # type: ignore[misc]
    def __init__(self, session: Session, seconds: float, **options: Any) -> None:
        super().__init__(session, **options)
        self._seconds = seconds

    def _create_process_provider(self, profile_name: str) -> ProcessProvider:
        def load() -> Any:
            return self._session.full_config

        return _BoundedProvider(profile_name, load, self._seconds)


class _BoundedProvider(ProcessProvider):  # type: ignore[misc]
    def __init__(self, profile: str, load_config: Any, seconds: float) -> None:
        super().__init__(profile, load_config, popen=self._start)
        self._seconds = seconds

    def _start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return _Program(words, self._seconds, **options)

    def load(self) -> Any:
        """As in the base class; an expiry that is no date is an error of the program."""
        try:
            return super().load()
        except ValueError as error:
            reason = f"the Expiration that its credential_process printed is no date: {error}"
            raise CredentialRetrievalError(provider=self.METHOD, error_msg=reason) from error

    def _retrieve_credentials_using(self, credential_process: str) -> Any:
        try:
            return super()._retrieve_credentials_using(credential_process)
        except (OSError, ValueError) as error:  # no such program, an open quote
            reason = f"credential_process = {credential_process}: {error}"
            raise CredentialRetrievalError(provider=self.METHOD, error_msg=reason) from error


class _Program(subprocess.Popen[bytes]):
    def __init__(self, words: Sequence[str], seconds: float, **options: Any) -> None:
        self._name, self._seconds = words[0] if words else "", seconds
        super().__init__(words, **options)

    def communicate(
        self, input: bytes | None = None, timeout: float | None = None
    ) -> tuple[bytes, bytes]:
        """As in the base class, but never longer than the deadline, and only a JSON object."""
        try:
            out, complaint = super().communicate(input, timeout or self._seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            # Its children may hold the pipes open, so they are not read to their end.
            for pipe in (self.stdout, self.stderr):
                if pipe is not None:
                    pipe.close()
            self.wait()
            raise self._failed(f"did not end within {self._seconds:.0f} s") from None
        if self.returncode == 0 and not _is_object(out):
            text = out.decode(errors="replace").strip()
            printed = repr(text[:SHOWN] + "…" * (len(text) > SHOWN)) if text else "nothing"
            raise self._failed(f"printed {printed}, {EXPECTED}")
        return out, complaint.decode(errors="replace").encode()

    def _failed(self, what: str) -> CredentialRetrievalError:
        return CredentialRetrievalError(
            provider=ProcessProvider.METHOD,
            error_msg=f"the program {self._name} of its credential_process {what}",
        )


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(parse_json(text.decode()), dict)
    except ValueError:
        return False
