"""The one module that knows every object key of a run.

All keys are relative to the run's own prefix (``WorkItem.results_url``), the existing system's
``result_path``; ``<rank>.json`` and ``combined_data.json`` are the keys that existing notebooks
read.
"""

from __future__ import annotations

import re

MANIFEST = "manifest.json"
"""What the run has to do: its run id, request, partitions in natural order, and their assignment to
ranks."""
ITEMS = "items.json"
"""List of work items, one per rank, which a Distributed Map on AWS reads."""
PAYLOAD = "payload.json"
"""The request with ``data_map``, in the form that existing scripts read."""
COMBINED = "combined_data.json"
"""List of all rank records, in rank order."""
SUMMARY = "summary.json"
"""Results, times and cost of the run; written last."""
CATALOGUE = "catalogue.parquet"
"""One row per object. In a small run this is the key of one object, in a large run the prefix of
the parts (`catalogue_part`)."""
MERGED = "merged.json"
"""Marks the catalogue and all records as complete; rank 0 of a communicator writes it after
them."""
RATINGS = "ratings.parquet"
"""Ratings of single objects by people; see `perseid explore`. Never removed with a run, because
they are people's work."""
LOGS = "logs"
"""Folder of the ranks' logs."""
ENGINE = "engine.json"
"""What the engine measured: every attempt as Lambda would report it, wall time, and overhead."""
DRIVER = "driver.json"
"""Who is working on the run (host and process id); deleted when nobody is."""


def items_of(execution: str) -> str:
    """Items of an execution that resumes a run: those of the missing ranks."""
    return f"items.{execution}.json"


def is_items(key: str) -> bool:
    """Whether the key holds work items, either of the run's first execution or of one that resumed
    it."""
    return key == ITEMS or (key.startswith("items.") and key.endswith(".json"))


def record(rank: int) -> str:
    """A rank's record. It is written last of the rank's objects, so its presence means that they
    are complete."""
    return f"{rank}.json"


def script_record(rank: int) -> str:
    """In script mode: our measurements of the rank, beside the record that the script wrote."""
    return f"ranks/{rank}/script.json"


def done_record(rank: int, *, script: bool) -> str:
    """The record that perseid writes when a rank is done; a script may have written one of its own
    too."""
    return script_record(rank) if script else record(rank)


def predictions(rank: int) -> str:
    """A rank's predictions (Parquet), with rows in the order of its partitions."""
    return f"ranks/{rank}/predictions.parquet"


def features(rank: int) -> str:
    """A rank's columns and features (npz), from which summarize makes the catalogue."""
    return f"ranks/{rank}/features.npz"


def moments(rank: int) -> str:
    """The statistics of a rank's features (npz), one entry per partition; small, and read first."""
    return f"ranks/{rank}/moments.npz"


def catalogue_part(number: int) -> str:
    """Key of one part of a large run's catalogue (Parquet); part 0 holds the first rows."""
    return f"{CATALOGUE}/part-{number:05d}.parquet"


def is_catalogue(key: str) -> bool:
    """Whether the key is that of a run's catalogue or of a part of it."""
    return _CATALOGUE.fullmatch(key) is not None


def failure(rank: int) -> str:
    """On AWS: the reason why a rank's last attempt failed, quoted in the message that reports the
    rank as missing."""
    return f"ranks/{rank}/failure.json"


def log(rank: int) -> str:
    """The log of all attempts at a rank, including REPORT lines in Lambda's form."""
    return f"logs/{rank}.log"


SLURM_OUT_OF_MEMORY = "slurm/out-of-memory.json"
"""On Slurm: the ranks that ran out of memory, and how much they had."""


def slurm_submission(name: str) -> str:
    """On Slurm: what the tasks of one submission have to do."""
    return f"slurm/{name}.json"


def slurm_report(name: str, task: int) -> str:
    """On Slurm: the results of one task of a submission."""
    return f"slurm/{name}/{task}.json"


_OF_RANK = re.compile(r"(\d+)\.json$|ranks/(\d+)/|logs/(\d+)\.log$")
_CATALOGUE = re.compile(r"catalogue\.parquet(/part-\d+\.parquet)?")
_OF_RUN = re.compile(
    r"(manifest|items|payload|combined_data|merged|summary|engine|driver|\d+)\.json|items\.[^/]+\.json"
    r"|catalogue\.parquet(/part-\d+\.parquet)?|report\.html|ranks/\d+/.+"
    r"|logs/(\d+|initialize|summarize)\.log|slurm/.+"
)


def rank_of(key: str) -> int | None:
    """The rank that an object belongs to; None if it belongs to the run as a whole."""
    found = _OF_RANK.match(key)
    return int(found[1] or found[2] or found[3]) if found else None


def is_of_run(key: str) -> bool:
    """Whether a run writes an object with this key, so that ``--replace`` may remove it."""
    return _OF_RUN.fullmatch(key) is not None
