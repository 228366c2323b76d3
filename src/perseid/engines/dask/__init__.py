"""The engine of a Dask cluster that the user has: ranks as tasks of a `distributed.Client`."""

from perseid.engines.dask.dask_engine import DaskEngine

__all__ = ["DaskEngine"]
