"""Do the tests see faults? A seeded sample of mutants of the modules whose failure loses data.

    python scripts/mutants.py --sample 300 --seed 1 --out mutants.jsonl

Each mutant (cosmic-ray's: another operator, constant or condition, an exception that is not caught)
is made in a copy of the tree and should make a test of its module fail. First the tests run once
without a mutant: how long each takes, and which lines it runs. A mutant is shown to those that run
its line, the quickest first, until one fails. Survivors are printed with their change, to be judged
by a person.

Each result is appended to the file; started again, the program goes on where it stopped.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from coverage import Coverage

ROOT = Path(__file__).parents[1]
LIBRARIES = ("numpy", "obstore", "onnxruntime", "onnx", "pyarrow.parquet", "pydantic", "boto3",
             "moto", "hypothesis", "h5py", "astropy.table", "rich.console", "torch")  # fmt: skip
"""Loaded once; each mutant's tests run in a process that is forked from this one."""
LONGEST = 60.0
"""Seconds of tests that a mutant is shown to: a survivor of these is called one."""
SERVER_SECONDS = 5.0
"""Seconds until the S3 server runs, which the tests that use it share: they come late."""
PATIENCE = 10.0
"""A mutant's tests may take so many times what they took without it, and `GRACE` more."""
GRACE = 30.0
MEMORY = 8 << 30
"""Bytes that the tests of a mutant may allocate."""
UNSEEN = ("ReplaceBinaryOperator_BitOr", "RemoveDecorator")
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
        ("unit/test_pipeline_merge.py", "unit/test_pipeline_plan.py",
         "unit/test_pipeline_rank_outputs.py",
         "integration/test_pipeline_collective_merge.py", "integration/test_pipeline_steps.py",
         "integration/test_run_identity.py", "integration/test_pipeline_script.py"),
    ),
    Target(
        ("pipeline/initialize.py", "pipeline/resumption.py", "pipeline/claim.py"),
        ("unit/test_pipeline_plan.py", "unit/test_pipeline_overlap.py",
         "unit/test_pipeline_manifest.py", "integration/test_golden_runs.py",
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
    line: int
    source: str
    """Digest of the module that is changed."""


@dataclass(frozen=True)
class Facts:
    """What is known of a test file without mutants."""

    seconds: dict[str, float]
    """By test."""
    lines: dict[str, dict[int, list[str]]]
    """The tests that run a line, by module and line; "" is the import of the module."""
    failed: list[str]


class Watch:
    """A plugin of pytest: which tests run, in which order, how long they take and what they run."""

    def __init__(self, wanted: list[str] | None = None, coverage: Coverage | None = None) -> None:
        self.order = {name: place for place, name in enumerate(wanted or ())}
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.order:
            chosen = [item for item in items if item.nodeid in self.order]
            items[:] = sorted(chosen, key=lambda item: self.order[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self.coverage:
            self.coverage.switch_context(item.nodeid)
        began = time.monotonic()
        result = yield
        server = "s3_server" in getattr(item, "fixturenames", ())
        self.seconds[item.nodeid] = time.monotonic() - began + server * SERVER_SECONDS
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Process:
    """A forked process that runs tests in a tree."""

    def __init__(self, tree: Path, work: Callable[[Path], dict[str, Any]], limit: float) -> None:
        self.tree, self.answer = tree, tree.parent / f"{tree.name}.json"
        self.began, self.limit = time.monotonic(), limit
        self.answer.unlink(missing_ok=True)
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                self._work(work)
            os._exit(1)

    def _work(self, work: Callable[[Path], dict[str, Any]]) -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        log = os.open(self.answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self.tree)
        sys.path.insert(0, str(self.tree / "src"))
        os.environ["PYTHONPATH"] = str(self.tree / "src")
        self.answer.write_text(json.dumps(work(self.tree)))
        os._exit(0)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def ended(self) -> bool:
        """Whether it has ended, or has just been ended since its time is over."""
        if not os.waitpid(self.pid, os.WNOHANG)[0]:
            if self.seconds < self.limit:
                return False
            self.kill()
            os.waitpid(self.pid, 0)
        self.kill()
        return True

    def kill(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def result(self) -> dict[str, Any] | None:
        """What it found; None where it crashed or was ended."""
        return json.loads(self.answer.read_text()) if self.answer.exists() else None


def run_tests(tree: Path, files: list[str], watch: Watch, *options: str) -> int:
    """Run tests in this process; pytest's exit code."""
    scratch = tree.parent / f"{tree.name}-tmp"
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "-m", "not slow", *options,
                            f"--basetemp={scratch}", *files], plugins=[watch]))  # fmt: skip


def observe(tree: Path, file: str) -> dict[str, Any]:
    """Run a test file without a mutant."""
    coverage = Coverage(data_file=None, include=[f"{tree}/src/perseid/*"])
    watch = Watch(coverage=coverage)
    coverage.start()
    run_tests(tree, [f"tests/{file}"], watch)
    coverage.stop()
    data = coverage.get_data()
    modules = {module for target in TARGETS for module in target.modules}
    lines = {}
    for path in data.measured_files():
        module = str(Path(path).relative_to(tree / "src/perseid"))
        if module in modules:
            lines[module] = data.contexts_by_lineno(path)
    return {"seconds": watch.seconds, "lines": lines, "failed": watch.failed}


def facts(trees: list[Path], files: list[str], cache: Path) -> dict[str, Facts]:
    """What is known of each test file, from the cache where neither it nor the package changed."""
    known = json.loads(cache.read_text()) if cache.exists() else {}
    package = digest(*sorted((trees[0] / "src").rglob("*.py")))
    keys = {file: f"{package} {digest(trees[0] / 'tests' / file)}" for file in files}
    waiting = [file for file in files if keys[file] not in known]

    def begin(tree: Path, file: str) -> Process:
        return Process(tree, lambda tree: observe(tree, file), 1800)

    for file, process in side_by_side(trees, waiting, begin):
        found = process.result()
        if found is None:
            raise RuntimeError(f"{file}: {process.answer.with_suffix('.log').read_text()[-2000:]}")
        known[keys[file]] = found
        cache.write_text(json.dumps(known))
        total = sum(found["seconds"].values())
        print(f"{file}: {len(found['seconds'])} tests, {total:.0f} s, failed: {found['failed']}")
    return {file: as_facts(known[keys[file]]) for file in files}


def as_facts(found: dict[str, Any]) -> Facts:
    """Facts as they were before they were JSON."""
    lines = {module: {int(line): tests for line, tests in of.items()}
             for module, of in found["lines"].items()}  # fmt: skip
    return Facts(found["seconds"], lines, found["failed"])


def digest(*paths: Path) -> str:
    """Of the content of files."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def side_by_side(
    trees: list[Path], waiting: list[Any], begin: Callable[[Path, Any], Process]
) -> Iterator[tuple[Any, Process]]:
    """Work on everything that waits (more may be added), one process a tree; what has ended."""
    free, running = list(trees), []
    try:
        while waiting or running:
            while waiting and free:
                item, tree = waiting.pop(0), free.pop()
                running.append((item, begin(tree, item)))
            time.sleep(0.05)
            for pair in [pair for pair in running if pair[1].ended()]:
                running.remove(pair)
                yield pair
                free.append(pair[1].tree)
    finally:
        for _, process in running:
            process.kill()


def mutants(source: Path) -> list[Mutant]:
    """All mutants of all targets."""
    found = []
    for target in TARGETS:
        for module in target.modules:
            path = source / module
            nodes = list(ast_nodes(get_ast(path.read_text())))
            for name in operator_names():
                if name.removeprefix("core/").startswith(UNSEEN) or get_operator(name).arguments():
                    continue
                operator = get_operator(name)()
                places = [p for node in nodes for p in operator.mutation_positions(node)]
                found += [
                    Mutant(module, name, number, place[0][0], digest(path))
                    for number, place in enumerate(places)
                ]
    return found


def neighborhoods(source: str, line: int) -> list[range]:
    """The lines of the statement of a line, of the function around it, and so on outwards."""
    found = [range(1, source.count("\n") + 2)]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            body = getattr(node, "body", None)
            if body and line < body[0].lineno and not hasattr(node, "args"):
                found.append(range(node.lineno, body[0].lineno))  # the head of `if`, `for`, `with`
            elif not body or isinstance(node, ast.FunctionDef):
                found.append(range(node.lineno, (node.end_lineno or 0) + 1))
    return sorted(found, key=len)


def tests_of(mutant: Mutant, source: str, known: dict[str, Facts]) -> dict[str, float]:
    """The tests that a mutant is shown to, the quickest first, with their seconds."""
    (target,) = [target for target in TARGETS if mutant.module in target.modules]
    all_facts = [known[file] for file in target.tests]
    seconds = {test: time for facts in all_facts for test, time in facts.seconds.items()}
    by_line = [facts.lines.get(mutant.module, {}) for facts in all_facts]
    chosen: set[str] = set(seconds)
    for lines in neighborhoods(source, mutant.line):
        runs = {test for of in by_line for line in lines for test in of.get(line, ())} - {""}
        if runs:
            chosen = runs
            break
    broken = {test for facts in all_facts for test in facts.failed}
    shown: dict[str, float] = {}
    for test in sorted(chosen - broken, key=lambda test: seconds[test]):
        if shown and sum(shown.values()) + seconds[test] > LONGEST:
            break
        shown[test] = seconds[test]
    return shown


def attempt(tree: Path, mutant: Mutant, tests: dict[str, float], patience: float) -> Process:
    """Make a mutant in a tree and show it to its tests."""
    path = tree / "src" / "perseid" / mutant.module
    original = (ROOT / "src" / "perseid" / mutant.module).read_text()
    changed = mutate_code(original, get_operator(mutant.operator)(), mutant.occurrence)
    path.write_text(changed)
    # Byte code is valid for a time and a size: no two mutants have the same.
    attempt.made += 1
    os.utime(path, (attempt.made, attempt.made))

    def work(tree: Path) -> dict[str, Any]:
        watch = Watch(list(tests))
        files = sorted({test.partition("::")[0] for test in tests})
        code = run_tests(tree, files, watch, "-x")
        return {"code": code, "by": watch.failed[:1] or ["collection"]}

    return Process(tree, work, patience * (PATIENCE * sum(tests.values()) + GRACE))


attempt.made = int(time.time())


def outcome(mutant: Mutant, process: Process) -> dict[str, Any]:
    """What became of a mutant, as it is kept."""
    found = process.result()
    path = process.tree / "src" / "perseid" / mutant.module
    original = ROOT / "src" / "perseid" / mutant.module
    lines = [p.read_text().splitlines(keepends=True) for p in (original, path)]
    change = "".join(list(difflib.unified_diff(*lines, n=0))[2:])
    shutil.copy2(original, path)
    if found is None:
        name, by = ("timeout" if process.seconds > process.limit else "killed"), "crash"
    else:
        name, by = ("killed", found["by"][0]) if found["code"] else ("survived", "")
    return {**asdict(mutant), "outcome": name, "by": by, "seconds": round(process.seconds, 1),
            "change": change}  # fmt: skip


def key(result: dict[str, Any]) -> tuple[str, ...]:
    """What tells a mutant from others, also in the file of results."""
    return tuple(str(result[name]) for name in ("module", "operator", "occurrence", "source"))


def earlier(path: Path, *, again: bool) -> dict[tuple[str, ...], dict[str, Any]]:
    """Results of an earlier start; `again`: without survivors."""
    lines = path.read_text().splitlines() if path.exists() else []
    results = {key(result): result for result in map(json.loads, lines)}
    return {name: r for name, r in results.items() if not again or r["outcome"] == "killed"}


def try_all(
    trees: list[Path], chosen: list[Mutant], known: dict[str, Facts], out: Path, *, again: bool
) -> list[dict[str, Any]]:
    """The result of each mutant; one whose time was over gets twice as much in a second attempt."""
    done = earlier(out, again=again)
    results = [done[key(asdict(m))] for m in chosen if key(asdict(m)) in done]
    waiting = [(m, 1.0) for m in chosen if key(asdict(m)) not in done]

    def begin(tree: Path, item: tuple[Mutant, float]) -> Process:
        mutant, patience = item
        source = (ROOT / "src" / "perseid" / mutant.module).read_text()
        return attempt(tree, mutant, tests_of(mutant, source, known), patience)

    for (mutant, patience), process in side_by_side(trees, waiting, begin):
        result = outcome(mutant, process)
        if result["outcome"] == "timeout" and patience == 1.0:
            waiting.append((mutant, 2.0))
            continue
        results.append(result)
        with open(out, "a") as file:
            print(json.dumps(result), file=file)
        show(result, len(results), len(chosen))
    return results


def show(result: dict[str, Any], number: int, of: int) -> None:
    """A line about a mutant, with the change of one that survived."""
    print(f"{number}/{of} {result['outcome']} {result['module']}:{result['line']} "
          f"{result['operator']} {result['seconds']} s {result['by']}", flush=True)  # fmt: skip
    if result["outcome"] != "killed":
        print(result["change"], flush=True)


def summary(results: list[dict[str, Any]]) -> str:
    """How many were killed, in all and by module."""
    lines = []
    for module in [None, *sorted({result["module"] for result in results})]:
        of = Counter(r["outcome"] for r in results if module in (None, r["module"]))
        seen = of["killed"] + of["timeout"]
        total, late = of.total(), of["timeout"]
        lines.append(f"{module or 'all'}: {total} mutants, {seen} killed "
                     f"({seen / total:.1%}), {late} of them by their time")  # fmt: skip
    return "\n".join(lines)


def copies(folder: Path, count: int) -> list[Path]:
    """Copies of the tree."""
    trees = [folder / f"tree{number}" for number in range(count)]
    for tree in trees:
        for part in ("src", "tests", "scripts", "docs"):
            shutil.copytree(ROOT / part, tree / part)
        for name in ("pyproject.toml", "constraints.txt", "CHANGELOG.md", "README.md"):
            shutil.copy(ROOT / name, tree / name)
    return trees


def main() -> int:
    """Try a sample; the share of killed mutants, and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--module", help="only mutants of modules whose name holds this")
    parser.add_argument("--at-once", type=int, default=2, help="mutants at once")
    parser.add_argument("--again", action="store_true", help="show survivors to the tests again")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    args = parser.parse_args()
    found = [m for m in mutants(ROOT / "src" / "perseid") if (args.module or "") in m.module]
    chosen = random.Random(args.seed).sample(found, min(args.sample, len(found)))
    print(f"{len(chosen)} of {len(found)} mutants", flush=True)
    for name in LIBRARIES:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = copies(Path(folder), args.at_once)
        names = {m.module for m in chosen}
        files = sorted({f for t in TARGETS if names & set(t.modules) for f in t.tests})
        known = facts(trees, files, args.out.with_suffix(".facts.json"))
        results = try_all(trees, chosen, known, args.out, again=args.again)
    print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
