"""The engine of one machine: ranks as processes, more ranks than cores allowed."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from perseid.engines.base import MapResult
from perseid.engines.mapping import LocalMap
from perseid.engines.options import LocalOptions
from perseid.engines.process import Guard
from perseid.engines.talking import around_scripts, refuse_without_memory
from perseid.errors import RunError
from perseid.pipeline.events import Report
from perseid.pipeline.items import WorkItem
from perseid.pipeline.manifest import Manifest


class LocalEngine:
    """Runs ranks in worker processes; a context manager that leaves no process behind.

    A worker is used again for later ranks (warm), as Lambda uses its environments. Workers end
    with this process, however that ends.
    """

    name = "local"
    transport = "auto"

    def __init__(self, options: LocalOptions | None = None) -> None:
        self.options = options or LocalOptions()
        self._guard: Guard | None = None

    def map(self, items: Sequence[WorkItem], report: Report) -> MapResult:
        """Work on every item; see `perseid.engines.base.Engine.map`.

        All items must be of one run: same results, model and precision.
        """
        if self._guard is None:
            raise RunError("the local engine is not open: use it in a with statement")
        if not items:
            note = "no rank was left to work, so none met"
            return MapResult(concurrency=self.options.concurrency, transport_note=note)
        with around_scripts(items, self.options, report) as options:
            return LocalMap(items, options, self._guard, report).run()

    def check(self, manifest: Manifest) -> None:
        """Refuse a run that cannot work here, before anything of it is written.

        Raises
        ------
        BadInputError
            Its ranks must run at once, and the machine has no memory for that.
        """
        refuse_without_memory(manifest, self.options)

    def __enter__(self) -> Self:
        self._guard = Guard()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._guard is not None:
            self._guard.close()
            self._guard = None
