"""``perseid status`` and ``perseid logs`` of runs in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perseid.cli import main


def test_status_of_a_finished_an_incomplete_and_an_unfinished_run(
    make_run: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    done, part, begun = (
        str(make_run(name=name, **options).path)
        for name, options in (("done", {}), ("part", {"lost": (2,)}), ("begun", {"finish": False}))
    )
    assert main(["status", done]) == 0
    assert "complete: 4 of 4 ranks" in capsys.readouterr().out
    assert main(["status", part]) == 3
    assert "incomplete: 3 of 4 ranks" in capsys.readouterr().out
    assert main(["status", begun, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "not ended"
    assert main(["status", done, "--stop"]) == 0
    assert "had ended" in capsys.readouterr().out


def test_logs_of_a_run_and_of_a_rank(
    make_run: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run(ranks=12, rows=2)
    for name in ("mine.log", "007.log", "notes.txt"):
        (made.path / "logs" / name).write_text("not a rank's\n")
    assert main(["logs", str(made.path)]) == 0
    said = capsys.readouterr().out
    assert "not a rank's" not in said
    ids = [report.request_id for report in made.reports]
    places = [said.index(f"REPORT RequestId: {name}") for name in ids]
    assert places == sorted(places)  # rank 2 before rank 10
    assert main(["logs", str(made.path), "--rank", "11"]) == 0
    said = capsys.readouterr().out
    assert said.count("REPORT RequestId") == 1
    assert ids[11] in said
    assert main(["logs", str(made.path), "--rank", "99"]) == 2
    assert "no rank 99: it has the ranks 0 to 11" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "logs"])
def test_a_folder_without_a_run_and_an_id_without_aws(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert main([command, str(tmp_path / "nothing")]) == 2
    assert "there is no run at" in capsys.readouterr().err
    assert main([command, "20261122T101500Z-1f0a9c3b"]) == 2
    assert "no AWS region is set" in capsys.readouterr().err
