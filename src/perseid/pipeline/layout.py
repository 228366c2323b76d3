"""The one module that knows every object key of a run.

All keys are relative to the run's own prefix (``WorkItem.results_url``), the existing system's
``result_path``; ``<rank>.json`` and ``combined_data.json`` are where existing notebooks look.
"""

from __future__ import annotations

MANIFEST = "manifest.json"
"""What was to be done: run id, request, partitions in natural order, assignment to ranks."""
ITEMS = "items.json"
"""List of work items, one a rank (what a Distributed Map reads)."""
PAYLOAD = "payload.json"
"""The request with ``data_map``, as the existing scripts read it."""
COMBINED = "combined_data.json"
"""List of all rank records, in rank order."""
SUMMARY = "summary.json"
"""What was found, how long it took, what it cost; written last."""
CATALOGUE = "catalogue.parquet"
"""One row an object."""
LOGS = "logs"
"""Where the logs of the ranks lie."""
ENGINE = "engine.json"
"""What the engine measured: each attempt as Lambda would report it, wall time, overhead."""
DRIVER = "driver.json"
"""Who works on the run: host, process id; gone when nobody does."""


def record(rank: int) -> str:
    """A rank's record: written last of its objects, so its presence means they are whole."""
    return f"{rank}.json"


def predictions(rank: int) -> str:
    """A rank's predictions (Parquet), rows in the order of its partitions."""
    return f"ranks/{rank}/predictions.parquet"


def features(rank: int) -> str:
    """A rank's columns and features (npz) from which summarize makes the catalogue."""
    return f"ranks/{rank}/features.npz"


def log(rank: int) -> str:
    """What the rank logged over all attempts, REPORT lines as Lambda writes them included."""
    return f"logs/{rank}.log"
