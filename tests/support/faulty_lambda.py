"""The worker's handler, failing as a plan beside the run says: a real function in a real zip.

``<results_url>.faults.json`` holds ``{"0": ["raise", "exit"]}``: what attempt 1, 2, … at rank 0
does instead of its work; later attempts work.
"""

from __future__ import annotations

import json
import os
import time

from perseid.aws.handlers import worker
from perseid.errors import BadModel, NotFound, StorageError
from perseid.storage import Storage, split_url


def handler(event, context):
    item = event["item"]
    attempt = int(event.get("attempt_before") or 0) + int(item["options"].get("attempts_before", 0))
    planned = plan(item["results_url"]).get(str(item["rank"]), [])
    fault = planned[attempt] if attempt < len(planned) else "work"
    if fault == "work":
        return worker.handler(event, context)
    said = {"event": "start", "run": item["run_id"], "rank": item["rank"], "attempt": attempt + 1}
    print("PERSEID " + json.dumps({**said, "request": context.aws_request_id}), flush=True)
    if fault == "raise":
        raise StorageError(f"rank {item['rank']} cannot read its partition")
    if fault == "bad model":
        raise BadModel("the model has no output")
    if fault == "exit":
        os._exit(7)
    if fault == "hang":
        time.sleep(600)
    return None  # "nothing": it says that it is done, and is not


def plan(results_url: str) -> dict[str, list[str]]:
    folder, name = split_url(results_url)
    try:
        return dict(json.loads(Storage(folder).get(f"{name}.faults.json")))
    except NotFound:
        return {}
