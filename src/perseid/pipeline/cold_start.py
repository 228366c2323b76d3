"""Load an item's model, and meanwhile import what a rank's work needs besides.

onnxruntime takes as long to load a model of 50 MB as Python takes for its imports, and needs no
interpreter meanwhile. So this module imports little, and a process that starts loads its model
before it imports `perseid.pipeline.work`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING

from perseid.model.identity import CPU
from perseid.pipeline.items import WorkItem

if TYPE_CHECKING:
    from perseid.model.runtime import Predictor


def load_runtime(item: WorkItem) -> Predictor:
    """Load an item's model, with the item's number of threads, else as many as the process may
    use."""
    from perseid.model.loading import import_library, load_on  # not needed in every process
    from perseid.model.runtime import MICRO_BATCH

    # Not beside the other imports: each would wait for the other's.
    import_library(item.model_url)
    with _imported_beside("perseid.pipeline.work"):
        return load_on(
            item.model.device if item.model else CPU,
            item.model_url,
            threads=item.options.threads,
            precision=item.precision,
            micro_batch=min(MICRO_BATCH, item.batch_size),  # a larger one would be mostly padding
            signature=item.model_signature(),
            folder=item.options.model_path or "",
        )


@contextmanager
def _imported_beside(module: str) -> Iterator[None]:
    """Import a module in a thread, as far as there is room for one."""

    def load() -> None:
        with suppress(Exception):  # whoever imports it gets the error
            importlib.import_module(module)

    thread = Thread(target=load, name="imports", daemon=True)
    with suppress(RuntimeError):  # no room for a thread: it is imported later
        thread.start()
    try:
        yield
    finally:
        if thread.ident is not None:
            thread.join()
