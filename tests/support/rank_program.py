"""One rank of a run in a process of its own, as on Lambda: ``rank_program.py ITEM.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from perseid.pipeline.items import WorkItem
from perseid.pipeline.work import work

if __name__ == "__main__":
    record = work(WorkItem.from_json(Path(sys.argv[1]).read_text()))
    print(json.dumps(record.to_json()))
