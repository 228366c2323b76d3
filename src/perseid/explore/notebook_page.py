"""The live page inside a notebook: served from the kernel for as long as it lives."""

from __future__ import annotations

import atexit
from contextlib import ExitStack

from perseid.api.run import Run
from perseid.api.show import TextView
from perseid.explore.explore_server import ExploreServer
from perseid.explore.explored_run import ExploredRun
from perseid.explore.live import LiveRun
from perseid.plaintext import markup

HEIGHT = 800
"""Pixels of the page in a cell."""


class LivePage(TextView):
    """A page that is being served; shown inline as the last line of a cell.

    Parameters
    ----------
    run
        The run that it is about.
    port
        Where to listen on this machine; 0 takes a free one.
    height
        Pixels of the page in a cell.
    """

    def __init__(self, run: Run, port: int = 0, height: int = HEIGHT) -> None:
        self._open = ExitStack()
        live = LiveRun(run)
        server = ExploreServer(ExploredRun(run), live, port=port, framed=True)
        self._open.enter_context(server)
        live.begin()
        atexit.register(self.close)
        self.address = server.address
        """Of the page, token included."""
        super().__init__(
            f"explore    {self.address}",
            f'<iframe src="{markup(self.address)}" width="100%" height="{int(height)}" '
            'style="border: 1px solid #ccc"></iframe>',
        )

    def close(self) -> None:
        """End the page; the run is not touched."""
        self._open.close()
        atexit.unregister(self.close)
