"""The live page of a run: view, select, rate and search objects during the run and after it.

It is a small ASGI application on this machine. Like the command line it builds on the API, and it
is an extra: ``pip install 'perseid[explore]'``.
"""

from perseid.explore.explore_server import ExploreServer
from perseid.explore.explored_run import ExploredRun
from perseid.explore.live import LiveRun

__all__ = ["ExploreServer", "ExploredRun", "LiveRun"]
