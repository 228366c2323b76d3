"""The function that merges what the ranks left and publishes the result; the last step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perseid.aws.handlers import log
from perseid.errors import RunIncomplete
from perseid.pipeline import layout
from perseid.pipeline.summarize import summarize
from perseid.storage import Storage


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Publish the run of ``event["state"]``, what the state machine knows of it.

    Returns the state with a short ``summary``, or ``ok: false`` with the sentence that names what
    is missing (what is there has been published then, too).
    """
    state = dict(event["state"])
    who = {"run": state["run_id"], "execution": state["execution"]}
    log.write("start", function="summarize", **who, request=context.aws_request_id)
    storage = Storage(state["results_url"])
    engine = {"engine": "aws", "execution": state["execution"], "children": state["children"]}
    try:
        summary = summarize(storage, extra={"engine": engine})
    except RunIncomplete as error:
        said = {"error": "RunIncomplete", "message": str(error)}
        log.write("incomplete", run=state["run_id"], **said)
        return {**state, "ok": False, **said}
    short = {
        "status": summary["status"],
        "rows": summary["rows"]["received"],
        "summary_url": storage.where(layout.SUMMARY),
    }
    log.write("summarized", run=state["run_id"], **short)
    return {**state, "summary": short}
