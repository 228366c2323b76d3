"""On macOS and Windows runs are read, and begun on AWS; what needs Linux says so in one sentence.

A process of its own, with epoll, /proc and the modules of Unix taken away before perseid comes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tiny import tiny_model, tiny_survey

import perseid

WITHOUT = """
import builtins, io, os, select, signal, socket, sys
import astropy.table, asyncio, boto3, multiprocessing, numpy, obstore, pyarrow, rich, subprocess

class NoUnix:
    GONE = {"fcntl", "resource", "termios", "tty", "pwd", "grp"}
    def find_spec(self, name, path=None, target=None):
        if name in self.GONE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoUnix())
for name in NoUnix.GONE:
    sys.modules.pop(name, None)
GONE = {
    select: ("epoll", "poll", "EPOLLIN", "EPOLLOUT", "POLLRDHUP"),
    os: ("sched_getaffinity", "O_NOFOLLOW", "O_DIRECTORY", "O_PATH", "O_CLOEXEC", "getuid",
         "killpg", "setsid"),
    signal: ("SIGKILL", "SIGUSR1", "SIGHUP", "SIGSTOP", "SIGCONT"),
    socket: ("AF_UNIX", "SO_REUSEPORT", "MSG_DONTWAIT", "MSG_WAITALL", "TCP_KEEPIDLE",
             "TCP_USER_TIMEOUT", "TCP_CONGESTION"),
}
for module, names in GONE.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
real = builtins.open
def without_proc(path, *arguments, **keywords):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return real(path, *arguments, **keywords)
builtins.open = io.open = without_proc
"""


def elsewhere(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + program],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_runs_are_read_and_the_rest_says_what_it_needs(tmp_path):
    tiny_model(tmp_path / "tiny.onnx")
    tiny_survey(tmp_path / "survey", 20, 10)
    here = {"model": str(tmp_path / "tiny.onnx"), "results": str(tmp_path / "run")}
    perseid.run(tmp_path / "survey", engine=perseid.LocalEngine(workers=1), progress=False, **here)
    (tmp_path / "x.py").write_text("")
    done = elsewhere(tmp_path, """
import perseid
from perseid.cli import main

for name in perseid.__all__:
    getattr(perseid, name)
run = perseid.open_run("run")
assert run.status().state == "complete" and run.incomplete is None
assert len(run.catalogue().to_astropy()) == 20
assert "Cost Estimate" in str(run.table()).replace("\\n", " ") or run.table().rows
assert len(run.report().html) > 10_000 and run.ranks[1].rows == 10
assert list(run.logs(0)) and perseid.open_survey("survey").read(0).bands == 5
assert main(["table", "run"]) == main(["status", "run"]) == main(["report", "run"]) == 0
assert perseid.AwsEngine().name == "aws"  # boto3 and its credentials are all that it needs

def refused(call, what):
    try:
        call()
    except NotImplementedError as error:
        assert str(error).startswith(f"{what} needs Linux, and this is "), error
    else:
        raise AssertionError(what)

refused(lambda: perseid.run("survey", model="tiny.onnx", progress=False), "a run on this machine")
refused(lambda: perseid.Communicator.join("job", 0, 1), "The communicator")
refused(lambda: perseid.RendezvousServer().__enter__(), "A rendezvous server")
assert main(["run", "--data", "survey", "--model", "tiny.onnx", "--out", "other"]) == 2
assert main(["rendezvous", "serve", "--open"]) == 2
assert main(["comm", "run", "-n", "2", "x.py"]) == 2
""")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("needs Linux, and this is ") == 3
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "other").exists()
