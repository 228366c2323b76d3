"""The worker's arm64 zip under an emulated processor, with nothing in /sys, as Lambda may have it.

onnxruntime once ended its process there (onnxruntime#10038). The emulator is qemu's, the Python
Debian's for arm64; both come from Debian's packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from perseid.aws.deploy.packaging import build
from perseid.aws.deploy.wheels import Target

EMULATOR = "qemu-aarch64-static"
PYTHON = "3.11"
"""Debian 12's; the zip is made for it."""
PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libexpat1",
    "zlib1g", "libgcc-s1", "libstdc++6", "libssl3", "libffi8", "libbz2-1.0", "liblzma5",
)  # fmt: skip
PREDICT = """
import json
import numpy as np
from perseid.aws.handlers import probe
from perseid.model.runtime import ModelRuntime
model = ModelRuntime.load("default", threads=1, micro_batch=2)
found = model.predict(np.zeros((2, 5, 32, 32), np.float32), np.full((2, 5), 20.0))
print("ANSWER", json.dumps({**probe.processor(), "rows": len(found.redshift)}))
"""
"""As little as shows that it works: the emulator is slow."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with Debian's Python for arm64."""
    for program in (EMULATOR, "apt-get", "dpkg", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install qemu-user-static")
    folder = tmp_path_factory.mktemp("arm64")
    for name in ("lists/partial", "cache/archives/partial", "root"):
        (folder / name).mkdir(parents=True)
    apt = ["apt-get", "-q", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64",
           "-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache",
           "-o", "APT::Sandbox::User=root"]  # fmt: skip
    for words in (["update"], ["download", *PACKAGES]):
        done = subprocess.run([*apt, *words], cwd=folder, capture_output=True, timeout=400)
        if done.returncode:
            said = done.stderr.decode().strip().splitlines()
            pytest.skip(f"Debian's packages for arm64 are not to be had: {said[-1:]}")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True, timeout=120)
    return folder / "root"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_worker_predicts_on_arm64_with_an_empty_sys(root, tmp_path):
    package = build(tmp_path / "zips", Target("arm64"), interpreter=PYTHON, bytecode=False)[
        "worker"
    ]
    code = tmp_path / "code"
    with zipfile.ZipFile(package.path) as archive:
        archive.extractall(code)
    python = f"{EMULATOR} -cpu neoverse-n1 -L {root} {root}/usr/bin/python{PYTHON}"
    env = {"PATH": os.environ["PATH"], "PYTHONHOME": f"{root}/usr", "PYTHONPATH": str(code)}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none /sys && exec {python} -c "$0"',
         PREDICT],
        env=env, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.rpartition("ANSWER ")[2])
    assert (said["machine"], said["possible_processors"]) == ("aarch64", "not readable")
    assert said["rows"] == 2
