"""The engine of clusters that Slurm schedules: ranks packed into the tasks of job arrays."""

from perseid.engines.slurm.engine import SlurmEngine

__all__ = ["SlurmEngine"]
