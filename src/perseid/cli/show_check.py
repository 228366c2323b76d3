"""Print checks of AWS as lines for a person: whether each is fine, and what to do if not."""

from __future__ import annotations

from perseid.api.terminal import paint
from perseid.aws.deploy.doctor import Check

SIGNS = {"ok": "ok  ", "note": "note", "bad": "BAD ", "skip": "-   "}
COLORS = {"ok": 32, "note": 33, "bad": 31, "skip": 90}


def show_check(check: Check) -> None:
    paint(SIGNS[check.state], COLORS[check.state])
    print(f"  {check.name:14} {check.text}", flush=True)
