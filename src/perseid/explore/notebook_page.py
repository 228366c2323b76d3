"""The live page inside a notebook, served from the kernel as long as the kernel lives."""

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
"""Default height of the page in a cell, in pixels."""


class LivePage(TextView):
    """A served live page, which a notebook shows inline if it is the last line of a cell.

    Parameters
    ----------
    run
        The run to show.
    port
        Port to listen on, on this machine only; 0 takes a free one.
    height
        Height of the page in a cell, in pixels.
    """

    def __init__(self, run: Run, port: int = 0, height: int = HEIGHT) -> None:
        self._open = ExitStack()
        live = LiveRun(run)
        server = ExploreServer(ExploredRun(run), live, port=port, framed=True)
        # Served before the run is read, so that the cell has an address at once.
        self._open.enter_context(server)
        live.begin()
        # A kernel that exits must not leave the server's threads waiting.
        atexit.register(self.close)
        self.address = server.address
        """Address of the page, including the token."""
        super().__init__(
            f"explore    {self.address}",
            f'<iframe src="{markup(self.address)}" width="100%" height="{int(height)}" '
            'style="border: 1px solid #ccc"></iframe>',
        )

    def close(self) -> None:
        """Stop serving the page; the run goes on."""
        self._open.close()
        atexit.unregister(self.close)
