"""Do the tests see faults? A seeded sample of mutants of the modules whose failure loses data.

    python scripts/mutants.py --sample 300 --seed 1 --out mutants.txt

Each mutant (cosmic-ray's: another operator, constant, condition, a removed decorator …) is made in
a copy of the tree and should make one of the tests that belong to its module fail. Survivors are
printed with their change, to be judged by a person.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT = 120.0
"""Seconds for the tests of one mutant: one that hangs them is seen."""
UNSEEN = ("ReplaceBinaryOperator_BitOr", "core/NumberReplacer_none", "RemoveDecorator")
"""Beginnings of operators that change annotations or nothing: `X | None` of a type, decorators that
only mark."""


@dataclass(frozen=True)
class Target:
    """Modules, and the tests that should see what is wrong with them."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


TARGETS = (
    Target(("survey/safe_pickle.py",), ("unit/test_survey_torchfile.py",)),
    Target(("comm/frames.py",), ("unit/test_comm_wire.py", "unit/test_comm_frames.py")),
    Target(("rendezvous/protocol/handshake.py",), ("unit/test_rendezvous_handshake.py",)),
    Target(("rendezvous/server/registry.py",), ("unit/test_rendezvous_registry.py",)),
    Target(
        ("pipeline/rank_outputs.py", "pipeline/merge.py", "pipeline/records.py",
         "pipeline/publish.py"),
        ("unit/test_pipeline_merge.py", "integration/test_pipeline_collect.py",
         "integration/test_pipeline_steps.py"),
    ),
    Target(
        ("pipeline/initialize.py", "pipeline/resumption.py", "pipeline/claim.py"),
        ("unit/test_pipeline_manifest.py", "integration/test_golden_runs.py",
         "integration/test_run_identity.py", "faults/test_faults_claim.py",
         "integration/test_pipeline_steps.py", "integration/test_pipeline_script.py"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    operator: str
    occurrence: int
    tests: tuple[str, ...]


def mutants(tree: Path) -> Iterator[Mutant]:
    """All mutants of all targets."""
    for number, target in enumerate(TARGETS):
        for module in target.modules:
            session = tree / f"session-{number}-{Path(module).stem}.sqlite"
            config = session.with_suffix(".toml")
            config.write_text(
                "[cosmic-ray]\n"
                f'module-path = "src/perseid/{module}"\ntimeout = {TIMEOUT}\n'
                'excluded-modules = []\ntest-command = "true"\n'
                '[cosmic-ray.distributor]\nname = "local"\n'
            )
            cosmic_ray(tree, "init", str(config), str(session))
            with sqlite3.connect(session) as database:
                rows = database.execute("select operator_name, occurrence from mutation_specs")
                for operator, occurrence in rows:
                    if not operator.removeprefix("core/").startswith(UNSEEN):
                        yield Mutant(module, operator, occurrence, target.tests)


def cosmic_ray(tree: Path, *words: str) -> str:
    """Run cosmic-ray in the copy; its output."""
    command = [sys.executable, "-m", "cosmic_ray.cli", *words]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def survives(tree: Path, mutant: Mutant) -> str | None:
    """The change of a mutant that no test sees; None if one does."""
    path = tree / "src" / "perseid" / mutant.module
    before = path.read_text()
    cosmic_ray(
        tree, "apply", f"src/perseid/{mutant.module}", mutant.operator, str(mutant.occurrence)
    )
    try:
        if path.read_text() == before or passes(tree, mutant):
            changed = subprocess.run(
                ["diff", "-U0", "-", str(path)], input=before, capture_output=True, text=True
            )
            return "".join(changed.stdout.splitlines(keepends=True)[2:])
        return None
    finally:
        path.write_text(before)


def passes(tree: Path, mutant: Mutant) -> bool:
    """Whether all tests of a mutant pass."""
    tests = [f"tests/{name}" for name in mutant.tests if (tree / "tests" / name).exists()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m",
               "not slow", *tests]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> int:
    """Try a sample; the share of killed mutants, and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--module", help="only mutants of modules whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        for part in ("src", "tests", "scripts", "docs"):
            shutil.copytree(ROOT / part, tree / part)
        for name in ("pyproject.toml", "constraints.txt", "CHANGELOG.md", "README.md"):
            shutil.copy(ROOT / name, tree / name)
        found = [m for m in mutants(tree) if args.module is None or args.module in m.module]
        chosen = random.Random(args.seed).sample(found, min(args.sample, len(found)))
        results = []
        for number, mutant in enumerate(chosen, 1):
            began = time.monotonic()
            change = survives(tree, mutant)
            results.append({"module": mutant.module, "operator": mutant.operator,
                            "occurrence": mutant.occurrence, "survived": change})  # fmt: skip
            killed = sum(r["survived"] is None for r in results)
            print(f"{number}/{len(chosen)} {killed / number:.1%} {mutant.module} {mutant.operator} "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
            if change is not None:
                print(change, flush=True)
            args.out.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
