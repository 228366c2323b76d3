"""The one module that knows every object key of a run.

All keys are relative to the run's own prefix (``WorkItem.results_url``), the existing system's
``result_path``; ``<rank>.json`` and ``combined_data.json`` are where existing notebooks look.
"""

from __future__ import annotations

import re

MANIFEST = "manifest.json"
"""What the run has to do: run id, request, partitions in natural order, assignment to ranks."""
ITEMS = "items.json"
"""List of work items, one per rank (what a Distributed Map reads)."""
PAYLOAD = "payload.json"
"""The request with ``data_map``, as the existing scripts read it."""
COMBINED = "combined_data.json"
"""List of all rank records, in rank order."""
SUMMARY = "summary.json"
"""Results, times and cost of the run; written last."""
CATALOGUE = "catalogue.parquet"
"""One row an object: an object for small runs, the prefix of `catalogue_part` for large ones."""
MERGED = "merged.json"
"""Written by rank 0 of a communicator after the catalogue and all records: that they are whole."""
RATINGS = "ratings.parquet"
"""Ratings of single objects by people: see `perseid explore`. Never removed with a run, because
they are people's work."""
LOGS = "logs"
"""Folder of the ranks' logs."""
ENGINE = "engine.json"
"""What the engine measured: each attempt as Lambda would report it, wall time, overhead."""
DRIVER = "driver.json"
"""Who is working on the run: host and process id; deleted when no process is."""


def items_of(execution: str) -> str:
    """The items of an execution that goes on with a run: those of the missing ranks."""
    return f"items.{execution}.json"


def is_items(key: str) -> bool:
    """Whether it holds the items of an execution: the run's first, or one that went on."""
    return key == ITEMS or (key.startswith("items.") and key.endswith(".json"))


def record(rank: int) -> str:
    """A rank's record: written last of its objects, so its presence means they are whole."""
    return f"{rank}.json"


def script_record(rank: int) -> str:
    """Script mode: what we measured of the rank, beside the record that the script wrote."""
    return f"ranks/{rank}/script.json"


def done_record(rank: int, *, script: bool) -> str:
    """The record of ours that a rank leaves when it is done, whatever a script has left."""
    return script_record(rank) if script else record(rank)


def predictions(rank: int) -> str:
    """A rank's predictions (Parquet), rows in the order of its partitions."""
    return f"ranks/{rank}/predictions.parquet"


def features(rank: int) -> str:
    """A rank's columns and features (npz) from which summarize makes the catalogue."""
    return f"ranks/{rank}/features.npz"


def moments(rank: int) -> str:
    """The statistics of a rank's features (npz), one entry per partition: small, read first."""
    return f"ranks/{rank}/moments.npz"


def catalogue_part(number: int) -> str:
    """A part of the catalogue of a large run (Parquet); 0 holds its first rows."""
    return f"{CATALOGUE}/part-{number:05d}.parquet"


def is_catalogue(key: str) -> bool:
    """Whether it is the catalogue of a run or a part of it."""
    return _CATALOGUE.fullmatch(key) is not None


def failure(rank: int) -> str:
    """On AWS: why a rank's last attempt failed, for the sentence that names it as missing."""
    return f"ranks/{rank}/failure.json"


def log(rank: int) -> str:
    """What the rank logged over all attempts, REPORT lines as Lambda writes them included."""
    return f"logs/{rank}.log"


def slurm_submission(name: str) -> str:
    """On Slurm: what the tasks of one submission are to do."""
    return f"slurm/{name}.json"


def slurm_report(name: str, task: int) -> str:
    """On Slurm: what one task of a submission did."""
    return f"slurm/{name}/{task}.json"


_OF_RANK = re.compile(r"(\d+)\.json$|ranks/(\d+)/|logs/(\d+)\.log$")
_CATALOGUE = re.compile(r"catalogue\.parquet(/part-\d+\.parquet)?")
_OF_RUN = re.compile(
    r"(manifest|items|payload|combined_data|merged|summary|engine|driver|\d+)\.json|items\.[^/]+\.json"
    r"|catalogue\.parquet(/part-\d+\.parquet)?|report\.html|ranks/\d+/.+|logs/[^/]+\.log|slurm/.+"
)


def rank_of(key: str) -> int | None:
    """The rank that an object is of; None if it is of the run as a whole."""
    found = _OF_RANK.match(key)
    return int(found[1] or found[2] or found[3]) if found else None


def is_of_run(key: str) -> bool:
    """Whether a run writes an object of this key: what ``--replace`` may remove."""
    return _OF_RUN.fullmatch(key) is not None
