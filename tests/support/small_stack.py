"""A stack of one log group, which AWS doubles make in an instant."""

from __future__ import annotations

import json

TEMPLATE = json.dumps({
    "Description": "perseid - of a test",
    "Parameters": {"Days": {"Type": "Number"}},
    "Resources": {"Logs": {"Type": "AWS::Logs::LogGroup",
                           "Properties": {"RetentionInDays": {"Ref": "Days"}}}},
})  # fmt: skip
