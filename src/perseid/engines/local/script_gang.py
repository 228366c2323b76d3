"""Run all ranks of a script at once, with a rendezvous of their own, so they can communicate."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from perseid.engines import memory
from perseid.engines.local.local_options import LocalOptions
from perseid.errors import BadInputError, PerseidError
from perseid.pipeline.events import Report, StageEvent
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest
from perseid.plaintext import option
from perseid.rendezvous import Config, EmbeddedServer

SCRIPT_MB = 300
"""Minimum memory of a script's rank, in MiB, if the request states none: torch after import."""


def refuse_without_memory(manifest: Manifest, options: LocalOptions) -> None:
    """Raise `BadInputError` if the ranks must run at once but do not fit into memory.

    The default limit says nothing about what a rank really takes; a limit that the user gave does.
    """
    # 0 means that the kernel does not report it; then nothing is refused.
    free, each = memory.available(), options.memory_mb
    if "memory_mb" not in manifest.request:
        each = min(each, SCRIPT_MB)
    if not manifest.talks or not free or manifest.world_size * each <= free:
        return
    raise BadInputError(
        f"the {manifest.world_size} ranks of this script talk to each other and must run at once, "
        f"but {free:.0f} MB of free memory are too little for {each} MB each: give with "
        f"{option('memory_mb')} what a rank really takes, or use fewer ranks (`world_size`)"
    )


@contextmanager
def around_scripts(
    items: Sequence[WorkItem], options: LocalOptions, report: Report
) -> Iterator[LocalOptions]:
    """Yield the options with which these ranks can reach each other; unchanged without a script.

    Parameters
    ----------
    items
        Work items of one run, at least one.
    options
        The options that the user gave.
    report
        Called if the number of workers is raised or no rendezvous can be started.
    """
    if items[0].options.script is None:
        yield options
        return
    if items[0].options.talks:
        if options.concurrency < len(items):
            report(
                StageEvent(
                    "map",
                    f"the ranks of this script talk to each other: {option('workers')} is "
                    f"raised from {options.concurrency} to {len(items)}, so that all run at once",
                )
            )
        # Two attempts at a straggler would take the same place among the communicating ranks.
        workers = max(options.concurrency, len(items))
        options = replace(options, workers=workers, second_attempts=False)
    with ExitStack() as stack:
        yield replace(options, environment=_server(stack, options.concurrency, report))


def _server(stack: ExitStack, at_once: int, report: Report) -> dict[str, str]:
    """Start a server; return the variables that tell scripts of it, empty if it cannot start."""
    secret = secrets.token_bytes(32)  # for this run only; never in a file
    config = Config(host="127.0.0.1", port=0, http_port=None, tcpunch=False, secret=secret)
    try:
        server = stack.enter_context(EmbeddedServer(config))
    except (PerseidError, OSError) as error:
        # Only a note: a script that exchanges no messages needs no server.
        report(StageEvent("map", f"no rendezvous for scripts could be started: {error}"))
        return {}
    return {
        "PERSEID_RENDEZVOUS": server.address,
        "PERSEID_JOB_SECRET": secret.hex(),
        "PERSEID_RANKS_AT_ONCE": str(at_once),
    }
