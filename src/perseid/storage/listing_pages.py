"""Pages of a listing, from servers that may say for ever that there is one more.

The client follows such pages inside one call, which neither ends nor can be interrupted. A key that
comes twice, or no key for longer than the client retries anything, ends the listing here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.store import LocalStore, MemoryStore, S3Store

from perseid.errors import StorageError

if TYPE_CHECKING:
    from obstore import ObjectMeta

LISTING_SECONDS = 200.0
"""How long a server may name no further key, seconds: longer than the client retries a request, so
that whatever else fails is told by its own name."""
_AT_ONCE = 1000
"""Keys that the client hands over together."""
_T = TypeVar("_T")


def pages(
    store: LocalStore | MemoryStore | S3Store, prefix: str, where: str
) -> Iterator[Sequence[ObjectMeta]]:
    """All objects below a prefix of a store, a page at a time.

    Raises `StorageError`, which names `where`, for an S3 server whose listing does not end.
    """
    stream = obstore.list(store, prefix or None, chunk_size=_AT_ONCE)
    if not isinstance(store, S3Store):
        yield from stream
        return
    seen: set[str] = set()
    while (page := in_time(lambda: next(stream, None), where)) is not None:
        keys = {meta["path"] for meta in page}
        if not keys.isdisjoint(seen):
            raise endless(where, "it names the same keys again")
        seen |= keys
        yield page


def in_time(ask: Callable[[], _T], where: str) -> _T:
    """The result of a listing request; `StorageError` if there is none within the limit."""
    answer: Future[_T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # raised again in the caller's thread
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(LISTING_SECONDS)
    except TimeoutError:
        if answer.done():
            raise
        raise endless(where, f"it has named no key for {LISTING_SECONDS:g} s") from None


def endless(where: str, why: str) -> StorageError:
    """The error for a server that keeps saying that its listing has another page."""
    return StorageError(
        f"{where}: the listing does not end: the server says that there is more, but {why}; check "
        "the endpoint, or ask whoever runs the server"
    )
