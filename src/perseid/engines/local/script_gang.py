"""Scripts whose ranks exchange messages: run all at once, around a rendezvous of the run's own."""

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
from perseid.rendezvous import Config, EmbeddedServer

SCRIPT_MB = 300
"""What one rank of a script takes at least, MiB, where the request does not say: torch, loaded."""


def refuse_without_memory(manifest: Manifest, options: LocalOptions) -> None:
    """Raise `BadInputError` if the ranks must run at once and have no room to.

    The limit that is there by default says nothing of what a rank takes, a limit that was asked
    for does.
    """
    free, each = memory.available(), options.memory_mb
    if "memory_mb" not in manifest.request:
        each = min(each, SCRIPT_MB)
    if not manifest.talks or not free or manifest.world_size * each <= free:
        return
    raise BadInputError(
        f"the {manifest.world_size} ranks of this script talk to each other and must run at once, "
        f"but {free:.0f} MB of free memory are too little for {each} MB each: say with --memory "
        "what a rank really takes, or take fewer ranks (`world_size`)"
    )


@contextmanager
def around_scripts(
    items: Sequence[WorkItem], options: LocalOptions, report: Report
) -> Iterator[LocalOptions]:
    """The options with which these ranks can reach each other; unchanged without a script.

    Parameters
    ----------
    items
        Of one run; at least one.
    options
        As the user gave them.
    report
        Told where more workers are needed.
    """
    if items[0].options.script is None:
        yield options
        return
    if items[0].options.talks:
        if options.concurrency < len(items):
            report(
                StageEvent(
                    "map",
                    f"the ranks of this script talk to each other: --workers is raised from "
                    f"{options.concurrency} to {len(items)}, so that all run at once",
                )
            )
        # A straggler's double would take its place among the ranks while both are at work.
        workers = max(options.concurrency, len(items))
        options = replace(options, workers=workers, second_attempts=False)
    with ExitStack() as stack:
        yield replace(options, environment=_server(stack, options.concurrency, report))


def _server(stack: ExitStack, at_once: int, report: Report) -> dict[str, str]:
    """What tells a script of the server; nothing where none can be started."""
    secret = secrets.token_bytes(32)  # of this run alone; in its workers' environment, in no file
    config = Config(host="127.0.0.1", port=0, http_port=None, tcpunch=False, secret=secret)
    try:
        server = stack.enter_context(EmbeddedServer(config))
    except (PerseidError, OSError) as error:
        report(StageEvent("map", f"no rendezvous for scripts could be started: {error}"))
        return {}
    return {
        "PERSEID_RENDEZVOUS": server.address,
        "PERSEID_JOB_SECRET": secret.hex(),
        "PERSEID_RANKS_AT_ONCE": str(at_once),
    }
