"""The existing payload as it is, its own script included, through the state machine."""

from __future__ import annotations

import published
import pytest

from perseid.cli import main
from perseid.storage import Storage


@pytest.fixture(scope="module")
def payload(stack, put_survey, tmp_path_factory):
    path = tmp_path_factory.mktemp("payload") / "payload.json"
    return published.write(stack.outputs["Bucket"], put_survey, path)


def test_the_users_script_runs_and_its_records_are_combined(stack, payload, capsys):
    assert main(["run", str(payload), "--engine", "aws"]) == 0
    assert "complete: 4 of 4 ranks" in capsys.readouterr().out
    url = f"{stack.bucket}/{published.RESULTS}"
    published.check(url)
    log = Storage(url).get("logs/2.log").decode()
    assert "rank 2 of 4 works on" in log
    assert main(["table", url, "--format", "csv", "--table", "runs"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("1GB,512,4,4/4,")
