"""What a store refuses is told in its own words; what is not a store is never taken for one.

The server is real, its answers are those that AWS documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_s3 import BUCKET, Answer, Asked, Drop, SmallS3, error, serving

from perseid.errors import AlreadyExistsError, ForbiddenError, NotFoundError, StorageError
from perseid.storage import Storage, listing_pages, scan
from perseid.storage.reasons import CODES

OPERATIONS: dict[str, Callable[[Storage], object]] = {
    "get": lambda store: store.get("k"),
    "range": lambda store: store.get_range("k", 0, 2),
    "view": lambda store: store.view("k", 0, 2),
    "info": lambda store: store.info("k"),
    "exists": lambda store: store.exists("k"),
    "put": lambda store: store.put("k", b"x"),
    "new": lambda store: store.put("k", b"x", new=True),
    "list": lambda store: list(store.list()),
    "names": lambda store: store.names(),
    "delete": lambda store: store.delete(["k"]),
}
SKEWED = "<RequestTime>20261126T010203Z</RequestTime><ServerTime>2026-11-26T03:04:05Z</ServerTime>"
DOCUMENTED = [
    (403, "RequestTimeTooSkewed", SKEWED, ForbiddenError, r"clocks .*\(here 20261126T010203Z, th"),
    (400, "ExpiredToken", "", ForbiddenError, r"expired: get new ones"),
    (400, "TokenRefreshRequired", "", ForbiddenError, r"expired: get new ones"),
    (400, "InvalidToken", "", ForbiddenError, r"AWS_SESSION_TOKEN"),
    (403, "InvalidAccessKeyId", "", ForbiddenError, r"does not know this access key"),
    (403, "SignatureDoesNotMatch", "", ForbiddenError, r"secret key does not fit"),
    (403, "AccessDenied", "", ForbiddenError, r"\(s3:\w+\)"),
    (403, "AllAccessDisabled", "", ForbiddenError, r"may not do this"),
    (403, "InvalidObjectState", "<StorageClass>GLACIER</StorageClass>", ForbiddenError,
     r"archived \(GLACIER\).*restore-object"),
    (400, "AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>", StorageError,
     r"not in the region us-east-1 but in eu-central-1"),
    (404, "NoSuchBucket", "", NotFoundError, r"there is no such bucket"),
    (405, "MethodNotAllowed", "", StorageError, r"does not allow this request"),
    (400, "KMS.DisabledException", "", ForbiddenError, r"kms:Decrypt"),
    (400, "EntityTooLarge", "", StorageError, r"larger than"),
    (400, "InvalidDigest", "", StorageError, r"the store refuses: \w+"),
    (409, "InvalidBucketState", "", StorageError, r"the store refuses: \w+"),
]  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_CONDITIONAL_PUT"):
        monkeypatch.delenv(name, raising=False)
    with serving() as small:
        monkeypatch.setenv("AWS_ENDPOINT_URL", small.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield small


@pytest.fixture
def store(server: SmallS3) -> Storage:
    found = Storage(f"s3://{BUCKET}")
    server.asked.clear()
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_code_has_its_own_sentence(server: SmallS3, store: Storage, operation: str) -> None:
    for status, code, extra, kind, words in DOCUMENTED:
        server.asked.clear()
        server.answer = lambda asked, a=(status, code, "Words", extra): error(*a)
        if operation in ("info", "exists", "delete") and code == "NoSuchBucket":
            continue  # "is not there" is all that an answer without a body says
        with pytest.raises(kind, match=words) as caught:
            OPERATIONS[operation](store)
        sentence = str(caught.value)
        if kind is not NotFoundError:
            assert code in sentence, "the server's own code"
        assert "<" not in sentence
        assert "\n" not in sentence
        assert len(server.asked) <= 2, "a refusal is not repeated"


@pytest.mark.parametrize("operation", ["get", "put", "list", "delete"])
def test_a_conflict_is_not_an_object_that_is_there(
    server: SmallS3, store: Storage, operation: str
) -> None:
    server.answer = lambda asked: error(409, "OperationAborted", "A conflicting operation")
    with pytest.raises(StorageError, match=r"in progress: try again .*\(OperationAborted\)") as e:
        OPERATIONS[operation](store)
    assert not isinstance(e.value, AlreadyExistsError)


def test_an_error_after_the_answer_began_is_a_sentence(server: SmallS3, store: Storage) -> None:
    """Status 200, and in the body that it failed after all."""
    late = error(409, "InternalError", "We encountered an internal error.")
    server.answer = lambda asked: Answer(200, late.body, late.headers)
    with pytest.raises(StorageError, match=r"too busy, or failed.*\(InternalError\)") as caught:
        store.delete(["k"])
    assert "<" not in str(caught.value)


def test_a_part_that_does_not_say_which_is_not_data(server: SmallS3, store: Storage) -> None:
    server.answer = lambda asked: Answer(206, b"abc", {"ETag": '"5f3c"'})
    with pytest.raises(StorageError, match="not an S3 server"):
        store.get_range("k", 0, 3)


def test_every_code_of_the_table_is_a_sentence_on_one_line() -> None:
    from perseid.storage.reasons import Answer as Read

    for code, reason in CODES.items():
        sentence = Read("400", code, "", "performing GET").fill(reason.advice, "us-east-1")
        assert "{" not in sentence
        assert not sentence.endswith(".")
        assert "\n" not in sentence


def test_the_page_of_storage_has_every_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "storage.md").read_text()
    assert [code for code in CODES if f"`{code}`" not in page] == []


def test_the_right_that_is_missing_is_named(server: SmallS3, store: Storage) -> None:
    server.answer = lambda asked: error(403, "AccessDenied", "Access Denied")
    needed = {
        "get": "s3:GetObject", "info": "s3:GetObject", "put": "s3:PutObject",
        "new": "s3:PutObject", "list": "s3:ListBucket", "delete": "s3:DeleteObject",
    }  # fmt: skip
    for operation, right in needed.items():
        with pytest.raises(ForbiddenError, match=rf"may not do this \({right}\)"):
            OPERATIONS[operation](store)


def test_a_key_that_may_not_be_deleted_is_an_error(server: SmallS3, store: Storage) -> None:
    body = (
        b"<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>k</Key>"
        b"<Code>AccessDenied</Code><Message>Access Denied</Message></Error></DeleteResult>"
    )
    server.answer = lambda asked: Answer(200, body, {"Content-Type": "application/xml"})
    with pytest.raises(ForbiddenError, match=r"s3:DeleteObject.*AccessDenied"):
        store.delete(["a", "k"])


def test_a_bucket_that_takes_no_write_without_encryption(
    server: SmallS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its policy:
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html"""

    def strict(asked: Asked) -> Answer | None:
        if asked.method != "PUT" or "x-amz-server-side-encryption" in asked.headers:
            return None
        return error(403, "AccessDenied", "with an explicit deny in a resource-based policy")

    server.answer = strict
    with pytest.raises(ForbiddenError, match="AWS_SERVER_SIDE_ENCRYPTION"):
        Storage(f"s3://{BUCKET}/x").put("a", b"1")
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "arn:aws:kms:us-east-1:1:key/k")
    Storage(f"s3://{BUCKET}/x").put("a", b"1")
    assert server.objects["x/a"] == b"1"
    said = server.asked[-1].headers["x-amz-server-side-encryption-aws-kms-key-id"]
    assert said == "arn:aws:kms:us-east-1:1:key/k"


def test_an_error_that_passes_is_tried_again(server: SmallS3, store: Storage) -> None:
    def twice_busy(asked: Asked) -> Answer | None:
        return error(503, "SlowDown", "Reduce your rate") if len(server.asked) < 3 else None

    server.answer = twice_busy
    for operation in ("put", "get", "list", "new"):
        server.asked.clear()
        server.objects.pop("k") if operation == "new" else None
        OPERATIONS[operation](store)
        assert len(server.asked) >= 3


PAGE = b"<html><head><title>Wi-Fi</title></head><body><p>Accept the terms</p></body></html>"
"""Well-formed, so that a reader of XML finds a listing without objects in it."""
BROKEN = b"<!DOCTYPE html>\n<html><body>Log in<br><form></body></html>"
PORTALS = {
    "page": Answer(200, PAGE, {"Content-Type": "text/html"}),
    "broken page": Answer(200, BROKEN, {"Content-Type": "text/html; charset=utf-8"}),
    "page with a tag": Answer(200, PAGE, {"Content-Type": "text/html", "ETag": '"5f3c"'}),
    "page without a type": Answer(200, PAGE),
    "nothing": Answer(200),
    "refusal": Answer(403, PAGE, {"Content-Type": "text/html"}),
    "absence": Answer(404, BROKEN, {"Content-Type": "text/html"}),
}


WITH_A_BODY = [
    (portal, operation)
    for portal in PORTALS
    for operation in ("get", "range", "list", "names", "info", "exists", "put", "new", "delete")
    if operation not in ("info", "exists") or portal not in ("refusal", "absence")
]
"""A refusal of HEAD has no page to be known by: it says no, as S3 would."""


@pytest.mark.parametrize(("portal", "operation"), WITH_A_BODY)
def test_a_page_is_never_data_nor_an_empty_listing(
    server: SmallS3, store: Storage, portal: str, operation: str
) -> None:
    server.answer = lambda asked: PORTALS[portal]
    with pytest.raises(StorageError, match=r"not an S3 server") as caught:
        OPERATIONS[operation](store)
    assert type(caught.value) is StorageError
    assert "Accept the terms" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 302, 511])
def test_a_page_is_found_at_once(server: SmallS3, status: int) -> None:
    def portal(asked: Asked) -> Answer:
        if asked.key == "login":
            return PORTALS["page"]
        return Answer(status, PAGE, {"Location": f"{server.endpoint}/{BUCKET}/login"})

    server.answer = portal
    with pytest.raises(StorageError, match=r"not an S3 server"):
        Storage(f"s3://{BUCKET}")


def test_pages_that_are_objects_are_read(server: SmallS3, store: Storage) -> None:
    store.put("report.html", PAGE)
    assert store.get("report.html") == PAGE
    assert list(store.list("empty")) == []


@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 4)])
def test_other_bytes_than_those_asked_for_are_never_data(
    server: SmallS3, store: Storage, start: int, end: int
) -> None:
    span = {"Content-Range": f"bytes {start}-{end}/100", "ETag": '"5f3c"'}
    span["Last-Modified"] = "Sun, 01 Nov 2026 00:00:00 GMT"
    server.answer = lambda asked: Answer(206, b"x" * (end - start + 1), span)
    with pytest.raises(
        StorageError, match=r"not an S3 server \(asked for the bytes 0\.\.4, it sent"
    ):
        store.view("k", 0, 4)


def line(key: str) -> str:
    return (
        f"<Contents><Key>{key}</Key><Size>1</Size><ETag>{'0' * 32}</ETag>"
        "<LastModified>2026-11-01T00:00:00.000Z</LastModified></Contents>"
    )


ENDLESS = {"no keys": "", "the same key": line("1.pt"), "the same odd key": line("a//1.pt")}
"""What stands on each page of a listing that says for ever that there is another page."""


@pytest.mark.parametrize("operation", ["list", "names", "scan"])
@pytest.mark.parametrize("page", ENDLESS)
def test_a_listing_that_never_ends_is_a_sentence(
    server: SmallS3, store: Storage, monkeypatch: pytest.MonkeyPatch, page: str, operation: str
) -> None:
    text = (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true'
        "</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        f"{ENDLESS[page]}</ListBucketResult>"
    )
    server.answer = lambda asked: Answer(200, text.encode(), {"Content-Type": "application/xml"})
    monkeypatch.setattr(listing_pages, "LISTING_SECONDS", 0.5)
    work = {**OPERATIONS, "scan": lambda store: scan(store)}[operation]
    # Storage itself stops at an odd key, which only a scan passes.
    is_odd = page == "the same odd key" and operation != "scan"
    with pytest.raises(StorageError, match="a//1.pt" if is_odd else "does not end"):
        work(store)


def unconditional(asked: Asked) -> Answer | None:
    if not {"if-none-match", "if-match"} & set(asked.headers) or asked.method != "PUT":
        return None
    return error(501, "NotImplemented", "A header you provided implies functionality that is not "
                 "implemented")  # fmt: skip


def test_a_server_without_conditional_writes_is_said_once(
    server: SmallS3, store: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.answer = unconditional
    with pytest.raises(StorageError, match=r"AWS_CONDITIONAL_PUT=disabled") as caught:
        store.put("claim", b"mine", new=True)
    assert "<" not in str(caught.value)
    assert len(server.asked) == 1
    store.put("run", b"first")
    seen = store.info("run")
    server.asked.clear()
    with pytest.raises(StorageError, match=r"AWS_CONDITIONAL_PUT=disabled"):
        store.swap("run", b"second", seen)
    assert len(server.asked) == 1
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    again = Storage(store.location)
    again.put("claim", b"mine", new=True)
    with pytest.raises(AlreadyExistsError, match="claim is there already"):
        again.put("claim", b"theirs", new=True)
    again.swap("run", b"second", seen)
    with pytest.raises(AlreadyExistsError, match="was replaced meanwhile"):
        again.swap("run", b"third", seen)
    assert server.objects == {"claim": b"mine", "run": b"second"}


def test_a_conflict_that_left_nothing_is_no_object(server: SmallS3, store: Storage) -> None:
    def conflict(asked: Asked) -> Answer | None:
        first = asked.method == "PUT" and server.count("PUT", "claim") == 1
        return (
            error(409, "ConditionalRequestConflict", "A conflicting operation") if first else None
        )

    server.answer = conflict
    store.put("claim", b"mine", new=True)
    assert server.objects["claim"] == b"mine"
    with pytest.raises(AlreadyExistsError):
        store.put("claim", b"theirs", new=True)


def test_a_write_without_an_answer_may_have_been_done(server: SmallS3, store: Storage) -> None:
    """The first attempt writes and loses its answer; the second finds what the first wrote."""

    def lost(asked: Asked) -> object | None:
        if asked.method == "PUT" and server.count("PUT", asked.key) == 1:
            server.objects[asked.key] = b"mine"
            return Drop
        return None

    server.answer = lost
    store.put("claim", b"mine", new=True)
    with pytest.raises(AlreadyExistsError):
        store.put("other", b"theirs", new=True)
    store.put("run", b"first")
    server.asked.clear()
    store.swap("run", b"mine", store.info("run"))
    assert store.get("run") == b"mine"


@pytest.mark.parametrize("status", [301, 400])
def test_a_bucket_of_another_region_is_followed(
    server: SmallS3, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("AWS_REGION", f"us-west-{status % 7}")

    def elsewhere(asked: Asked) -> Answer | None:
        if asked.region == "eu-central-1":
            return None
        return error(
            status, {301: "PermanentRedirect", 400: "AuthorizationHeaderMalformed"}[status],
            "…", x_amz_bucket_region="eu-central-1",
        )  # fmt: skip

    server.answer = elsewhere
    store = Storage(f"s3://{BUCKET}")
    store.put("k", b"v")
    assert store.get("k") == b"v"
    assert [info.key for info in store.list()] == ["k"]
