"""What a user can get wrong: one sentence, a status that is not 0, nothing left behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from perseid.cli import main
from perseid.survey import Cutouts, write_cutouts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two partitions of 8 rows."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in (1, 2):
        images = rng.normal(size=(8, 5, 32, 32)).astype(np.float32)
        magnitudes = rng.uniform(15, 18, (8, 5)).astype(np.float32)
        write_cutouts(
            Cutouts(images, magnitudes, np.full(8, 0.1, np.float32)), folder / f"{number}.pt"
        )
    return folder


def sentence(capsys, *words: object) -> str:
    """What the command says: it fails in one line."""
    assert main([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("perseid: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_model_that_is_not_there_starts_no_run(data, tmp_path, capsys):
    out = tmp_path / "run"
    said = sentence(capsys, "run", "--data", data, "--out", out, "--model", tmp_path / "typo.onnx")
    assert said == f"perseid: there is no model at {tmp_path}/typo.onnx"
    assert not out.exists()


def test_a_run_that_was_moved_is_resumed_where_it_is(data, tmp_path):
    """With all redshifts the same: R2 is not defined, which is no reason to fail either."""
    assert main(["run", "--data", str(data), "--out", str(tmp_path / "a"), "--quiet"]) == 0
    shutil.move(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "1.json").unlink()
    assert main(["resume", str(tmp_path / "b"), "--quiet"]) == 0
    assert (tmp_path / "b" / "1.json").exists()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("split", "nowhere.pt", "out"), "there is nothing at"),
        (("split", "DATA", "/proc/there"), "cannot be written"),
        (("run", "--data", "DATA", "--out", "DATA/1.pt"), "1.pt is a file, and a run is a folder"),
        (("run", "--data", "DATA", "--out", "DATA"), "would lie in the data"),
        (("run", "--data", "DATA", "--out", "DATA/runs/first"), "would lie in the data"),
        (("run", "--data", "DATA", "--rate", "9"), "add --dry-run, or leave --rate out"),
        (("run", "--data", "DATA", "--out", "x", "--engine", "aws", "--rate", "9"), "--dry-run"),
        (("train", "DATA", "DATA/1.pt/below"), "cannot be made: Not a directory"),
        (
            ("plan", "--data", "1GB", "--rate", "9", "--prices", "no.json"),
            "no.json cannot be read: No such file",
        ),
        (("model", "export", "DATA/1.pt", "out.onnx"), "is not a weight file"),
        (("model", "import", "DATA/1.pt", "out.npz"), "1.pt holds a torch.utils.data"),
        (("comm", "run", "-n", "2", "no.py"), "there is no script no.py"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_one_sentence(data, tmp_path, capsys, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    said = sentence(capsys, *(word.replace("DATA", str(data)) for word in words))
    assert expected in said
    assert "os error" not in said
    assert "Errno" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("split", "a", "b", "--rows", "5", "--size", "2MB"), "not allowed with argument"),
        (("sweep", "--data", "a", "--out", "b", "--world-sizes", "x"), "give numbers or files"),
        (("sweep", "--data", "a", "--out", "b", "--batch-sizes", "x"), "give whole numbers"),
    ],
)
def test_options_that_are_refused(capsys, words, expected):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "perseid", "model", "info", "default"],
        stdout=write, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(write)
    assert "Traceback" not in done.stderr


def test_make_says_which_python_it_needs(tmp_path):
    """The real interpreter, told to be older by a module that it loads at its start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.version_info = (3, 10, 1); sys.version = '3.10.1 (old)'"
    )
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        ["make", "demo", f"PYTHON={sys.executable}"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "perseid needs Python >= 3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


REFUSED = """
import sys
from perseid.cli import main
for line in sys.stdin:
    print(line.strip(), main(line.split()), file=sys.stderr)
"""


def test_folders_that_may_not_be_read_are_sentences_and_notes(tmp_path):
    """As root, without the capability to read everything: pathlib raises where os.path answers."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to take a capability of root away")
    cai = tmp_path / "cai"
    shutil.copytree(Path(__file__).parents[1] / "data" / "cai", cai)
    closed = [cai / "results", cai / "result-partition-100MB" / "1GB" / "2", tmp_path / "no"]
    closed[-1].mkdir()
    table = f"table --table runs --format csv {cai}/result-partition-"
    words = [
        f"{table}25MB/1GB/1", f"{table}100MB", f"table {tmp_path}/no/x",
        f"run {tmp_path}/no/r.json", f"run --data {cai} --out {tmp_path}/no/x",
        f"comm model reduce --constants {tmp_path}/no/x",
    ]  # fmt: skip
    lost = "-dac_override,-dac_read_search"
    user = ["setpriv", f"--bounding-set={lost}", f"--inh-caps={lost}"] if os.geteuid() == 0 else []
    try:
        for folder in closed:
            folder.chmod(0)
        ended = subprocess.run(
            [*user, sys.executable, "-c", REFUSED], input="\n".join(words), timeout=120,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        for folder in closed:
            folder.chmod(0o755)
    assert ended.returncode == 0, ended.stderr
    told = ended.stderr.splitlines()
    assert [line[-1] for line in told if line[:-2] in words] == [*"002222"]
    rows = ended.stdout.splitlines()
    assert "41/41" in rows[1]
    assert f"{cai}/results/total_execution_time.csv cannot be read: Permission denied" in rows[1]
    (hidden,) = [row for row in rows if "cannot be listed (Permission denied)" in row]
    assert "INCOMPLETE" in hidden
    assert sum("11/11" in row for row in rows) == 2
