"""The engine for Slurm clusters: ranks are packed into the tasks of job arrays."""

from perseid.engines.slurm.slurm_engine import SlurmEngine

__all__ = ["SlurmEngine"]
