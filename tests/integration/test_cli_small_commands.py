"""``demo``, ``help``, ``cite`` and ``completion``: small, and they say what they should."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from engine import Lab

from perseid import __version__
from perseid.cli import COMMANDS, main


def test_the_demo_shows_the_whole_path(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    for expected in ("simulate", "run"):  # the second time the survey is there
        status, out, err = lab.call("demo", "--rows", "60", "--out", "d")
        assert status == 0, err
        commands = [line.split()[2] for line in out.splitlines() if line.startswith("$ perseid")]
        assert commands[0] == expected
        assert commands[-3:] == ["run", "table", "report"]
        assert "complete: 8 of 8 ranks" in out
    assert len(list(tmp_path.glob("d/60-2026/runs/*/report.html"))) == 2


def test_help_is_what_the_option_says(capsys):
    texts = []
    for words in (["help", "aws", "deploy"], ["aws", "deploy", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("usage: perseid aws deploy")


def test_cite_names_the_works_and_the_versions(capsys):
    assert main(["cite"]) == 0
    said = capsys.readouterr().out
    assert f"perseid, version {__version__}" in said
    assert "onnxruntime " in said
    assert "https://arxiv.org/abs/2501.06249" in said
    assert main(["cite", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["perseid"] == __version__
    assert plain["works"][0]["kind"] == "software"
    assert set(plain["computed_with"]) == {"numpy", "onnxruntime", "obstore"}
    assert main(["cite", "--bibtex"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n@") == 3
    assert said.count("{") == said.count("}")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_of_that_shell(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "--world-size" in script
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here to read it")
    subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=60)
