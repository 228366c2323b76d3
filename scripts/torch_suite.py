"""PyTorch's own tests of torch.distributed against backend ``perseid``, unmodified.

    python scripts/torch_suite.py [-n RANKS] [--only TEXT] [--json FILE]

The tests come with PyTorch (``torch.testing._internal.distributed.distributed_test``) and need the
package ``expecttest``; those that need a GPU or another backend skip themselves. Each runs on RANKS
processes. ``--only DistributedData`` or ``--only ddp`` chooses by a part of the name.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import unittest
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("BACKEND", "perseid")
os.environ.setdefault("WORLD_SIZE", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TEMP_DIR", tempfile.mkdtemp(prefix="torch-suite-"))

from torch.testing._internal import common_distributed

common_distributed.TIMEOUT_DEFAULT = int(os.environ.get("TORCH_SUITE_SECONDS", "300"))
for feature in ("ddp", "subgroup", "plugin"):
    common_distributed.DistTestCases.backend_feature[feature].add("perseid")

from torch.testing._internal.distributed.distributed_test import (  # noqa: E402
    DistributedTest,
    TestDistBackend,
)

import perseid.torch  # noqa: E402, F401  # registers the backend, also in the processes of a test


class TestPerseid(TestDistBackend, DistributedTest._DistTestBase):  # type: ignore[misc]
    """All of PyTorch's tests, each in processes of its own."""

    def setUp(self) -> None:
        super().setUp()
        self._spawn_processes()


def outcome(name: str) -> str:
    """What came of a test: passed, skipped or failed, and why."""
    result = unittest.TestResult()
    TestPerseid(name).run(result)
    for _, reason in result.skipped:
        return f"skipped: {reason}"
    for _, text in (*result.failures, *result.errors):
        lines = [line for line in text.splitlines() if line.strip()]
        return f"failed: {' '.join(lines[-3:])[-600:]}"
    return "passed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-n", "--ranks", type=int, default=3, metavar="N")
    parser.add_argument("--only", default="", metavar="TEXT", help="tests with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    os.environ["WORLD_SIZE"] = str(options.ranks)
    names = unittest.defaultTestLoader.getTestCaseNames(TestPerseid)
    found: dict[str, Any] = {}
    for name in [name for name in names if options.only.lower() in name.lower()]:
        found[name] = outcome(name)
        print(f"{name}: {found[name]}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    print(dict(Counter(said.split(":")[0] for said in found.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
