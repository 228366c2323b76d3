"""The engine for a user's Dask cluster: ranks are tasks of a `distributed.Client`."""

from perseid.engines.dask.dask_engine import DaskEngine

__all__ = ["DaskEngine"]
