"""Explain why a store refused a request: the client's report as one sentence with the server's
code.

The codes are those of S3 (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html),
which other S3 servers use as well. All of them are in `CODES`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from obstore.exceptions import AlreadyExistsError as KeyTakenError
from obstore.exceptions import PreconditionError

from perseid.errors import AlreadyExistsError, ForbiddenError, NotFoundError, StorageError
from perseid.storage.credentials import NO_CREDENTIALS

METADATA_ADDRESS = "169.254.169.254"
"""Address of EC2's credentials. It is the last source to be tried, so an error there means that
there are no credentials."""
LONGEST = 300
"""Most characters of a server's own message to show."""


@dataclass(frozen=True)
class Reason:
    """The meaning of an error code for the user."""

    error: type[StorageError]
    """Class of the error to raise."""
    advice: str
    """What is wrong and what to do; `Answer.fill` replaces each ``{…}`` by a part of the answer."""


_CLOCK = Reason(
    ForbiddenError,
    "the clocks of this machine and of the server differ too much{times}: set the clock "
    "(`timedatectl set-ntp true`) and try again",
)
_EXPIRED = Reason(
    ForbiddenError,
    "these temporary credentials have expired: get new ones (`aws sso login`, or where AWS_SESSION_"
    "TOKEN came from) and try again; `perseid resume` continues a run",
)
_REGION = Reason(
    StorageError,
    "the bucket is not in the region {asked}{region}: name the right one with --region or "
    "AWS_REGION",
)
_BUSY = Reason(
    StorageError,
    "the store was too busy, or failed, in all attempts: try again later, with fewer workers",
)
_CONFLICT = Reason(
    StorageError,
    "another operation on the same object or bucket is in progress: try again in a minute",
)
_ARCHIVED = Reason(
    ForbiddenError,
    "the object is archived{storage_class} and cannot be read until it is restored: `aws s3api "
    "restore-object`, wait, and try again",
)
_DENIED = Reason(
    ForbiddenError,
    "these credentials may not do this ({action}){words}: ask whoever owns the bucket "
    "for that right{encryption}",
)
_FULL = Reason(StorageError, "the store is full: free some space, or choose another place")
_KEY = Reason(
    ForbiddenError,
    "the encryption key of the bucket cannot be used{words}: these credentials need kms:Decrypt "
    "and kms:GenerateDataKey on it",
)
_ENCRYPTION = (
    "; where its policy takes encrypted writes alone, set AWS_SERVER_SIDE_ENCRYPTION to AES256 or "
    "aws:kms, and deploy a stack with --kms-key"
)
UNCONDITIONAL = Reason(
    StorageError,
    "this server cannot write on the condition that an object is new, which keeps two runs apart: "
    "set AWS_CONDITIONAL_PUT=disabled to go without, and never start two runs at one place",
)

PROXY_PASSWORD = "ProxyAuthenticationRequired"
"""Our code for a proxy that wants a password; a proxy of HTTP answers in place of the server."""
_NO_PASSWORD = (
    "the proxy requires a user name and a password: put them into {variable}, as in "
    "http://NAME:PASSWORD@HOST:PORT"
)

CODES: Mapping[str, Reason] = {
    PROXY_PASSWORD: Reason(StorageError, _NO_PASSWORD.format(variable="HTTP_PROXY")),
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "UnauthorizedAccess": _DENIED,
    "InvalidAccessKeyId": Reason(
        ForbiddenError,
        "the store does not know this access key: check AWS_ACCESS_KEY_ID or the profile",
    ),
    "SignatureDoesNotMatch": Reason(
        ForbiddenError,
        "the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY or the profile",
    ),
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "RequestInTheFuture": _CLOCK,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": Reason(
        ForbiddenError,
        "the session token does not belong to these keys: set AWS_SESSION_TOKEN again, or unset it "
        "where the keys are not temporary",
    ),
    "InvalidObjectState": _ARCHIVED,
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "NoSuchBucket": Reason(NotFoundError, "there is no such bucket: check its name"),
    "NoSuchKey": Reason(NotFoundError, "there is no such object"),
    "InvalidBucketName": Reason(
        StorageError, "this is not a valid bucket name: check the part after s3://"
    ),
    "NotImplemented": Reason(
        StorageError, "this server does not support the request{words}: use another S3 server"
    ),
    "MethodNotAllowed": Reason(
        StorageError, "the server does not allow this request here{words}: check the endpoint"
    ),
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "InternalError": _BUSY,
    "RequestTimeout": _BUSY,
    "OperationAborted": _CONFLICT,
    "ConditionalRequestConflict": _CONFLICT,
    "QuotaExceeded": _FULL,
    "QuotaExceededException": _FULL,
    "XMinioStorageFull": _FULL,
    "EntityTooLarge": Reason(StorageError, "the object is larger than the store accepts"),
    "KMS.DisabledException": _KEY,
    "KMS.NotFoundException": _KEY,
    "KMS.AccessDeniedException": _KEY,
    "KMS.KMSInvalidStateException": _KEY,
}  # fmt: skip
"""The meaning of each server's error code."""

_STATUS = {
    "301": "PermanentRedirect", "307": "TemporaryRedirect", "401": "AccessDenied",
    "407": PROXY_PASSWORD, "429": "SlowDown", "408": "RequestTimeout",
    "403": "AccessDenied", "405": "MethodNotAllowed", "500": "InternalError",
    "501": "NotImplemented", "502": "ServiceUnavailable", "503": "ServiceUnavailable",
    "504": "ServiceUnavailable", "507": "QuotaExceeded",
}  # fmt: skip
"""Codes by HTTP status, for answers without one: those to HEAD have no body."""
_EMPTY_WORDS = ("access denied", "access denied.", "forbidden")
"""Server messages that add nothing to their code."""
_FOREIGN = (
    "invalid list response", "invalid DeleteObjects response", "ETag Header missing",
    "non-partial response", "error following redirect", "Content-Range header not present",
)  # fmt: skip
"""The client's descriptions of answers that S3 never gives."""
_ACTIONS = (
    ("list request", "s3:ListBucket"), ("performing PUT", "s3:PutObject"),
    ("DELETE", "s3:DeleteObject"), ("?delete", "s3:DeleteObject"),
    ("DeleteObjects", "s3:DeleteObject"), ("performing POST", "s3:PutObject"),
    ("", "s3:GetObject"),
)  # fmt: skip
"""The right that a request needs, by a part of the client's report."""


@dataclass(frozen=True)
class Answer:
    """A server's answer, parsed from the client's report."""

    status: str
    """HTTP status; empty if the report names none."""
    code: str
    """S3's error code, or the one that corresponds to the status; empty if there is neither."""
    body: str
    """The body of the answer, usually XML."""
    report: str
    """The first part of the client's report: method, URL, attempts."""

    @property
    def is_foreign(self) -> bool:
        """Whether it is a web page of some other server."""
        body = self.body.lstrip().lower()
        return body.startswith(("<!doctype html", "<html")) or self.status == "511"

    @property
    def is_final(self) -> bool:
        """Whether a retry would give the same answer."""
        return self.status.startswith(("3", "4")) and self.status not in ("408", "429")

    def tag(self, name: str) -> str:
        """The text of an XML element of the body, on one line; empty if it is missing."""
        import html  # rarely needed, and slow to import

        found = re.search(rf"<{name}>([^<]*)</{name}>", self.body)
        return " ".join(html.unescape(found[1]).split())[:LONGEST] if found else ""

    def fill(self, advice: str, asked_region: str) -> str:
        """Fill the details of the answer into a sentence of `CODES`."""
        words, region, kind = self.tag("Message"), self.tag("Region"), self.tag("StorageClass")
        here, there = self.tag("RequestTime"), self.tag("ServerTime")
        action = next(right for part, right in _ACTIONS if part in self.report)
        by_policy = action == "s3:PutObject" and "resource-based policy" in words
        return advice.format(
            asked=asked_region,
            action=action,
            encryption=_ENCRYPTION if by_policy else "",
            region=f" but in {region}" if region else "",
            storage_class=f" ({kind})" if kind else "",
            times=f" (here {here}, there {there})" if here and there else "",
            words=f", “{words}”" if words and words.lower() not in _EMPTY_WORDS else "",
        )


def answer_of(error: BaseException) -> Answer:
    """Parse the client's report of a failed request."""
    # The debug part repeats the request with all headers, and can be pages long.
    report = str(error).partition("\n\nDebug source:")[0]
    found = re.search(r"status code: (\d{3})[^:]*: ?(.*)", report, re.DOTALL)
    status, body = (found[1], found[2]) if found else ("", "")
    if failed := re.search(r"Server returned error response: ?(.*)", report, re.DOTALL):
        status, body = "200", failed[1]  # an error that S3 found after it had begun to answer
    if "redirect without LOCATION" in report:
        status = "301"
    code = re.search(r"<Code>([\w.]+)</Code>", body) or re.search(r"\(code: ([\w.]+)\)", report)
    return Answer(status, code[1] if code else _STATUS.get(status, ""), body, report)


def is_conflict(error: BaseException) -> bool:
    """Whether another write was in the way of this one, which may fail and leave nothing."""
    answer = answer_of(error)
    codes = ("", "OperationAborted", "ConditionalRequestConflict")
    return answer.status == "409" and answer.code in codes


def reason_of(error: BaseException, where: str, region: str | None = None) -> StorageError:
    """Translate one of the client's errors into ours; `region` is that of S3, None for other
    stores."""
    if region is not None and answer_of(error).is_foreign:
        return not_s3(where, f"a web page, status {answer_of(error).status}")
    # The client reports a missing bucket as a missing object, but the user needs to know which.
    if "<Code>NoSuchBucket<" in str(error):
        why = f"{CODES['NoSuchBucket'].advice} (NoSuchBucket)"
        return NotFoundError(f"{where} is not there: {why}")
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where} is not there")
    # Any conflict (409) is "exists already" to the client, also one about the bucket's state.
    if isinstance(error, KeyTakenError) and answer_of(error).status != "409":
        return AlreadyExistsError(f"{where} is there already")
    if isinstance(error, PreconditionError):
        return StorageError(f"{where} was replaced while it was being read")
    if region is not None:
        return _s3_reason(error, where, region)
    # Below a file there is no object; a client that looks for one must not end for it.
    kind = NotFoundError if "Not a directory" in str(error) else StorageError
    return kind(f"{where}: {_plainly(error)}")


def _s3_reason(error: BaseException, where: str, region: str) -> StorageError:
    if METADATA_ADDRESS in str(error):
        return StorageError(f"{where}: {NO_CREDENTIALS}")
    answer = answer_of(error)
    named = answer.code and answer.code in answer.report
    told = answer.code if named else f"status {answer.status}"
    if (known := CODES.get(answer.code)) is not None:
        return known.error(f"{where}: {answer.fill(known.advice, region)} ({told})")
    if answer.code or answer.status:
        words = answer.tag("Message") or "it gave no reason"
        return StorageError(f"{where}: the store refuses: {words} ({told})")
    if (network := network_reason(error)) is not None:
        return StorageError(f"{where}: the server cannot be reached: {network}")
    if found := next((part for part in _FOREIGN if part in answer.report), None):
        return not_s3(where, found)
    if bytes_ := re.search(r"Requested (\d+\.\.\d+), got (\d+\.\.\d+)", answer.report):
        return not_s3(where, f"asked for the bytes {bytes_[1]}, it sent {bytes_[2]}")
    return StorageError(f"{where}: {_plainly(error)}")


def not_s3(where: str, seen: str) -> StorageError:
    """The error if something else answers in place of S3: a log-in page, a proxy, another
    server."""
    return StorageError(
        f"{where}: what answered is not an S3 server ({seen}): log in to the network if it asks "
        "for that in a browser, and check proxy and endpoint"
    )


def _plainly(error: BaseException) -> str:
    """The first line of an error; for a disk, what was tried and why it failed, without numbers."""
    line = next(iter(str(error).strip().splitlines()), repr(error))
    found = re.fullmatch(
        r"Generic LocalFileSystem error: Unable to (.*): (.*) \(os error \d+\)", line
    )
    if found is None:
        return line
    tried = " ".join(found[1].split()[:2])
    return f"cannot {tried} ({found[2]}); choose another place, or check its permissions"


_CERTIFICATES = (
    ("UnknownIssuer", "is signed by an authority that this machine does not trust: name the file "
     "of the authority's certificate in AWS_CA_BUNDLE"),
    ("Expired", "has expired: have it renewed, or set the clock of this machine"),
    ("NotValidYet", "is not valid yet: set the clock of this machine"),
    ("NotValidForName", "is for another name: check the endpoint's host"),
    ("Revoked", "was revoked: ask whoever runs the server"),
)  # fmt: skip
"""What is wrong with a certificate, by the TLS library's name of the error."""


def network_reason(error: BaseException) -> str | None:
    """Why there was no answer: DNS, connection, TLS or proxy; None if there was one."""
    report = str(error)
    if "HTTP error" not in report and "error sending request" not in report:
        return None
    if found := re.search(r"InvalidCertificate\(\s*(\w+)", report):
        words = next((text for name, text in _CERTIFICATES if found[1].startswith(name)), None)
        return f"its certificate {words or 'is refused: check AWS_CA_BUNDLE'} ({found[1]})"
    if "InvalidMessage(" in report or "InvalidContentType" in report:
        return "it does not use TLS: write http:// in the endpoint if you trust the network"
    if "AlertReceived(" in report or "HandshakeFailure" in report:
        return "the TLS handshake failed: check the endpoint and its protocol versions"
    if "dns error" in report:
        return "its name cannot be resolved: check the endpoint and the network"
    if "ProxyAuthRequired" in report or "proxy authorization required" in report.lower():
        return _NO_PASSWORD.format(variable="HTTPS_PROXY")
    if "unsuccessful" in report.lower() and "tunnel" in report.lower():
        return "the proxy refuses the connection: check HTTPS_PROXY and NO_PROXY"
    if found := re.search(r'message: "([^"]+)"', report):
        return f"{found[1].lower()}: check the endpoint, and the network"
    if "TimedOut" in report or "kind: Timeout" in report:
        return "it did not answer in time: check the endpoint, and the network"
    return "the connection broke: check the endpoint, and the network"
