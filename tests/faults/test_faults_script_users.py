"""Script folders on a machine with other users: nobody else's code or files reach a script.

The other user is a real one: a process with another user id, started by root.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scripts import begin_script
from tiny import tiny_survey

from perseid.compat.scripts.run_script import run_script
from perseid.errors import RunError
from perseid.pipeline.items import WorkItem
from perseid.pipeline.request import RunRequest

OTHER, VICTIM = 41_002, 41_001
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: it starts processes of another user"
)

SCRIPT = """
import json, os, pathlib
seen = [pathlib.Path(name).read_text() for name in ("weights.txt", "FOLDER/weights.txt")]
answer = {"whose": "ours", "seen": seen, "file": __file__, "cwd": os.getcwd(),
          "temporary": os.access(os.environ["TMPDIR"], os.W_OK)}
pathlib.Path("RESULTS", os.environ["RANK"] + ".json").write_text(json.dumps(answer))
"""
EVIL = """
import os, pathlib, shutil, sys, time
top, folder, lock, results = sys.argv[1:5]
def evil(place):
    os.makedirs(place, exist_ok=True)
    pathlib.Path(place, "weights.txt").write_text("theirs")
    pathlib.Path(place, "run.py").write_text(
        "import pathlib, os\\n"
        f"pathlib.Path({results!r}, os.environ['RANK'] + '.json').write_text('{{\\"whose\\": 1}}')")
    os.chmod(place, 0o777)
"""
PREPARED = {
    "a folder above": "os.mkdir(top)",
    "the whole folder": "evil(folder)",
    "a link above": "evil(top + '-trap/code'); os.symlink(top + '-trap', top)",
    "a dangling link": "os.symlink(top + '-trap', top)",
    "a file": "pathlib.Path(top).touch()",
    "the lock": "pathlib.Path(lock).touch()",
    "a lock for all": "pathlib.Path(lock).touch(); os.chmod(lock, 0o666)",
}
SWAPPING = """
end = time.monotonic() + 60
while time.monotonic() < end:
    for step in (lambda: os.mkdir(top), lambda: evil(folder),
                 lambda: os.rename(top, top + '-trap'), lambda: os.symlink(top + '-trap', top),
                 lambda: os.unlink(top), lambda: shutil.rmtree(top + '-trap')):
        try:
            step()
        except OSError:
            pass
"""


@dataclass(frozen=True)
class Place:
    """One script folder in /tmp, and a bucket elsewhere."""

    base: Path
    top: Path
    folder: str

    @property
    def results(self) -> Path:
        return self.base / "bucket" / "results"

    def lock(self, uid: int) -> Path:
        digest = hashlib.sha256(self.folder.encode()).hexdigest()[:16]
        return Path(f"/tmp/.perseid-{uid}-{digest}.lock")

    def item(self) -> WorkItem:
        given = {
            "bucket": "bucket", "data_bucket": "bucket", "data_prefix": "data",
            "S3_object_name": self.folder, "script": f"/tmp/{self.folder}/run.py",
            "result_path": "results", "bucket_root": str(self.base),
        }  # fmt: skip
        return begin_script(RunRequest.parse(given), replace=True).items[0]

    def other_user(self, code: str, uid: int = 0) -> subprocess.Popen[bytes]:
        words = [str(self.top), f"/tmp/{self.folder}", str(self.lock(uid)), str(self.results)]
        return subprocess.Popen(
            ["/usr/bin/python3", "-c", EVIL + code, *words], user=OTHER, group=OTHER
        )

    def answer(self) -> dict:
        return json.loads((self.results / "0.json").read_text())


@pytest.fixture(params=["name/code", "name"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    base = Path(tempfile.mkdtemp(prefix="perseid-test-", dir="/var/tmp"))
    name = f"perseid-test-{uuid.uuid4().hex[:8]}"
    one = Place(base, Path("/tmp", name), request.param.replace("name", name))
    code = base / "bucket" / one.folder
    code.mkdir(parents=True)
    text = SCRIPT.replace("FOLDER", f"/tmp/{one.folder}").replace("RESULTS", str(one.results))
    (code / "run.py").write_text(text)
    (code / "weights.txt").write_text("ours")
    tiny_survey(base / "bucket" / "data", rows=4, per_partition=4)
    yield one
    for path in (base, one.top, Path(f"{one.top}-trap")):
        path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path, True)
    for uid in (0, VICTIM):
        one.lock(uid).unlink(missing_ok=True)


def check(answer: dict, folder: str) -> None:
    assert answer["whose"] == "ours"
    assert answer["seen"] == ["ours"] * 2
    assert (answer["file"], answer["cwd"]) == (f"/tmp/{folder}/run.py", f"/tmp/{folder}")
    assert answer["temporary"]


@pytest.mark.parametrize("prepared", PREPARED)
def test_what_another_user_put_there_reaches_no_script(place: Place, prepared: str):
    """The script finds its own files at the path that it knows, in a /tmp of its own."""
    assert place.other_user(PREPARED[prepared]).wait(20) == 0
    before = sorted(str(path) for path in place.top.rglob("*"))
    run_script(place.item())
    check(place.answer(), place.folder)
    assert sorted(str(path) for path in place.top.rglob("*")) == before or "lock" in prepared


def test_a_folder_of_ours_that_is_open_to_all(place: Place):
    place.top.mkdir()
    place.top.chmod(0o777)
    assert place.other_user("evil(top + '/code')").wait(20) == 0
    run_script(place.item())
    check(place.answer(), place.folder)


def test_a_folder_that_is_swapped_all_the_time(place: Place):
    """Between any two steps of ours: the script is ours each time."""
    other = place.other_user(SWAPPING)
    try:
        for _ in range(12):
            run_script(place.item())
            check(place.answer(), place.folder)
            if place.top.exists() and place.top.stat().st_uid == 0:
                shutil.rmtree(place.top)  # ours came first: once more from the beginning
    finally:
        other.kill()
        other.wait(10)


def test_the_folders_that_are_made_are_closed_to_others(place: Place):
    before = os.umask(0)
    try:
        run_script(place.item())
    finally:
        os.umask(before)
    check(place.answer(), place.folder)
    path = Path("/tmp", place.folder)
    while path != Path("/tmp"):
        assert (path.stat().st_uid, path.stat().st_mode & 0o077) == (0, 0)
        path = path.parent


def test_a_user_without_roots_rights(place: Place):
    """In a user namespace where the system allows it; otherwise a sentence, and nothing is run."""
    assert place.other_user("evil(folder)").wait(20) == 0
    item = place.item()
    for path in (place.base, *place.base.rglob("*")):
        os.chown(path, VICTIM, VICTIM)
    words = [sys.executable, "-c", AS_VICTIM, str(VICTIM), str(place.base)]
    told = json.dumps(item.to_json())
    done = subprocess.run(words, input=told, text=True, capture_output=True, timeout=60)
    if done.stdout == "done":
        check(place.answer(), place.folder)
    else:
        assert "gives no process a folder of its own" in done.stdout, done.stderr
        assert f"belongs to user {OTHER}" in done.stdout
        assert not (place.results / "0.json").exists()


AS_VICTIM = """
import ctypes, os, sys, tempfile
from perseid.compat.scripts.run_script import run_script
from perseid.pipeline.items import WorkItem
item, user = WorkItem.from_json(sys.stdin.read()), int(sys.argv[1])
os.setgroups([])
os.setgid(user)
os.setuid(user)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as after an exec: /proc/self is theirs
sys.executable, tempfile.tempdir = "/usr/bin/python3", sys.argv[2]
os.chdir("/")
try:
    run_script(item)
    print("done", end="")
except Exception as error:
    print(error)
"""


def test_results_that_the_script_would_not_see_are_refused(place: Place):
    """Its own /tmp hides what lies in the shared one: said at once, before the script starts."""
    assert place.other_user("evil(folder)").wait(20) == 0
    item = place.item()
    with tempfile.TemporaryDirectory() as hidden:
        moved = WorkItem.from_json({**item.to_json(), "results_url": f"file://{hidden}"})
        with pytest.raises(RunError, match=f"belongs to user {OTHER}.*needs {hidden}"):
            run_script(moved)
