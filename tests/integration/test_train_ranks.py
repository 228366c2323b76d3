"""Training on several ranks: the step and the result of one, and a sentence for mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_survey import blobs
from waiting import eventually

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'perseid[train]'")

STEP = Path(__file__).parents[1] / "support" / "train_step.py"
SMALL = ["--batch", "32", "--pretrain-epochs", "2", "--epochs", "2", "--threads", "1"]


def perseid(*arguments, timeout=280):
    command = [sys.executable, "-m", "perseid", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    return blobs(tmp_path_factory.mktemp("survey"))


def test_a_step_on_several_ranks_has_the_gradients_of_one(survey):
    """Random masks, jitter and batch normalization are those of the whole batch. In float64 to
    1e-9; the redshift's branches have kinks, where float32 may fall on either side."""
    done = perseid("comm", "run", "-n", 2, STEP, survey)
    found = dict(re.findall(r"STEP (\w+) (\S+)", done.stdout))
    assert found.keys() == {"pretrain", "redshift"}, done.stderr
    assert float(found["pretrain"]) < 1e-5
    assert float(found["redshift"]) < 2e-2


@pytest.mark.slurm
@pytest.mark.slow
def test_two_ranks_on_the_nodes_of_a_slurm_end_as_two_here(slurm, survey, tmp_path):
    """Bit for bit: neither the nodes nor the way that the ranks met makes a difference."""
    options = ["--world-size", 2, *SMALL]
    here = perseid("train", survey, tmp_path / "here", *options)
    assert here.returncode == 0, here.stderr
    srun = ["srun", "--nodes=2", "--ntasks=2", "--overcommit", sys.executable, "-m", "perseid"]
    there = subprocess.run(
        [*srun, "train", survey, tmp_path / "there", *map(str, options)], check=False,
        capture_output=True, text=True, timeout=280,
        env={**os.environ, "PERSEID_MEETING_FOLDER": str(tmp_path / "meetings")},
    )  # fmt: skip
    assert there.returncode == 0, there.stderr
    assert there.stdout.count("held-out plain objects") == 1
    weights = [(tmp_path / name / "weights.npz").read_bytes() for name in ("here", "there")]
    assert weights[0] == weights[1]
    a, b = (json.loads((tmp_path / n / "history.json").read_text()) for n in ("here", "there"))
    losses = [[(e["loss"], e["validation"]) for e in one["epochs"]] for one in (a, b)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_two_ranks_end_as_one_process_does(survey, tmp_path):
    """To 1e-4 where the optimizer follows the gradient alone; Adam's steps of the redshift's first
    epochs amplify the last bit, as another number of threads does: there, to a tenth."""
    one = perseid("train", survey, tmp_path / "one", *SMALL)
    assert one.returncode == 0, one.stderr
    two = perseid("train", survey, tmp_path / "two", *SMALL, "--world-size", 2)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("held-out plain objects") == 1
    a, b = (json.loads((tmp_path / n / "history.json").read_text()) for n in ("one", "two"))
    assert a["options"] == b["options"]
    assert a["survey"] == b["survey"]
    for mine, theirs in zip(a["epochs"], b["epochs"], strict=True):
        rtol = 1e-4 if mine["phase"] == "pretrain" else 0.1
        np.testing.assert_allclose(theirs["loss"], mine["loss"], rtol=rtol)
        np.testing.assert_allclose(theirs["validation"], mine["validation"], rtol=rtol)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(
        p.name for p in (tmp_path / "one").iterdir()
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 1])
def test_ranks_that_are_stopped_leave_a_checkpoint_and_go_on(survey, tmp_path, ranks):
    """With as many ranks as before, or with another number of them."""
    arguments = [str(survey), str(tmp_path / "out"), *SMALL]
    command = [sys.executable, "-m", "perseid", "train", *arguments, "--world-size", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        eventually((tmp_path / "out" / "checkpoint.pt").exists, 200)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) != 0
    assert not (tmp_path / "out" / "weights.npz").exists()
    done = perseid("train", *arguments, "--world-size", ranks, "--resume")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "weights.npz").exists()
    epochs = json.loads((tmp_path / "out" / "history.json").read_text())["epochs"]
    assert [epoch["phase"] for epoch in epochs] == ["pretrain"] * 2 + ["redshift"] * 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--world-size", "0"], "--world-size is 0: at least 1 is needed"),
        (
            ["--world-size", "3", "--batch", "32"],
            "a batch of 32 rows cannot be shared equally by 3 ranks: give --batch 33",
        ),
    ],
)
def test_what_ranks_cannot_do_is_refused_by_a_sentence(survey, tmp_path, options, sentence):
    done = perseid(
        "train", survey, tmp_path / "out", "--epochs", 1, "--pretrain-epochs", 1, *options
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "weights.npz").exists()
