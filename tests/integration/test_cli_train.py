"""``perseid train`` as a user runs it: a real process, stopped and resumed, and bad input."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_survey import blobs
from waiting import eventually

from perseid.cli import main
from perseid.model.weights import load_weights
from perseid.survey.splits import TEST, assign_split

SMALL = ["--batch", "32", "--pretrain-epochs", "2", "--epochs", "3", "--threads", "1"]


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    return blobs(tmp_path_factory.mktemp("survey"))


def _run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perseid", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


def test_a_stopped_and_resumed_training_ends_with_the_same_bits(survey, tmp_path, capsys):
    straight = _run(survey, tmp_path / "a", *SMALL)
    assert straight.returncode == 0, straight.stderr
    assert "held-out plain objects" in straight.stdout

    command = [sys.executable, "-m", "perseid", "train", str(survey), str(tmp_path / "b"), *SMALL]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    eventually((tmp_path / "b" / "checkpoint.pt").exists, 120)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--resume goes on" in errors
    assert not (tmp_path / "b" / "weights.npz").exists()

    resumed = _run(survey, tmp_path / "b", *SMALL, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.splitlines()[:2] == straight.stdout.splitlines()[:2]
    said = json.loads(_run(survey, tmp_path / "b", *SMALL, "--resume", "--json").stdout)
    assert said.pop("weights") == str(tmp_path / "b" / "weights.npz")
    assert said == json.loads((tmp_path / "b" / "history.json").read_text())
    a, b = (load_weights(tmp_path / name / "weights.npz") for name in "ab")
    assert a.config == b.config
    for name, array in a.arrays.items():
        np.testing.assert_array_equal(array, b.arrays[name], err_msg=name)

    history = json.loads((tmp_path / "a" / "history.json").read_text())
    phases = [epoch["phase"] for epoch in history["epochs"]]
    assert phases == ["pretrain"] * 2 + ["redshift"] * 3
    losses = [epoch["loss"] for epoch in history["epochs"]]
    assert losses[1] < losses[0]
    assert losses[4] < losses[2]
    assert history["rows"]["held_out"] == int((assign_split(np.arange(240)) == TEST).sum())
    assert history["test"]["n"] == history["rows"]["held_out"]
    assert not list(tmp_path.glob("*/*.scratch"))

    again = [str(survey), str(tmp_path / "b"), *SMALL, "--resume", "--seed", "5"]
    assert main(["train", *again]) == 2
    assert "resume with the same options" in capsys.readouterr().err


def test_bad_input_is_one_sentence(survey, tmp_path, capsys):
    out = tmp_path / "o"
    out.mkdir()
    (out / "checkpoint.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "file").write_text("")
    for arguments, phrase in (
        ([survey, out, "--batch", "500"], "at least 500 are needed"),
        ([tmp_path / "nowhere", out], "nowhere"),
        ([survey, out, *SMALL, "--resume"], "cannot be read"),
        ([survey, out, *SMALL, "--pretrain-epochs", "0"], "drawn at random"),
        ([survey, tmp_path / "file", *SMALL], "OUT must be a folder"),
        ([survey, out, "--lr", "-1"], "lr is -1.0"),
        ([survey, out, "--start", tmp_path / "none.npz"], "none.npz"),
    ):
        assert main(["train", *map(str, arguments)]) == 2
        errors = capsys.readouterr().err
        assert phrase in errors
        assert "Traceback" not in errors
        assert errors.strip().splitlines()[-1].startswith("perseid: ")
