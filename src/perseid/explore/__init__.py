"""The live page of a run: look, select, label and search while it goes on and when it has ended.

A small ASGI application on this machine. It sits on the API as the command line does, and is an
extra: ``pip install 'perseid[explore]'``.
"""

from perseid.explore.explore_server import ExploreServer
from perseid.explore.explored_run import ExploredRun
from perseid.explore.live import LiveRun

__all__ = ["ExploreServer", "ExploredRun", "LiveRun"]
