"""The structure that the source keeps: no circle of files, no long or tangled function."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import perseid

ROOT = Path(perseid.__file__).parent
LONGEST_BODY = 40
"""Lines of a function from its first statement after the docstring to its last."""
Tree = ast.Module


@functools.cache
def modules() -> dict[str, Tree]:
    """Dotted name -> syntax tree of every file of the package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["perseid", *path.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


def imports(name: str, tree: Tree, known: set[str]) -> Iterator[str]:
    """Files that a file imports: anywhere in it, for types and inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan, 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            place = stack.index(node)
            part = stack[place:]
            del stack[place:]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


def test_no_circle_of_files():
    trees = modules()
    graph = {
        name: set(imports(name, tree, set(trees))) - {name, "perseid"}
        for name, tree in trees.items()
    }
    assert sum(map(len, graph.values())) > 500, "the imports are read"
    assert components(graph) == []


def test_no_function_is_long():
    long = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body
                docstring = ast.get_docstring(node) is not None
                if docstring and len(body) > 1:
                    body = body[1:]
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
                if lines > LONGEST_BODY:
                    long.append(f"{name}.{node.name}: {lines} lines")
    assert long == []


FACES = "perseid.compat"
"""Names there are those of the systems that they stand for."""


def test_no_two_classes_share_a_name():
    places: dict[str, list[str]] = {}
    own = {name: tree for name, tree in modules().items() if not name.startswith(FACES)}
    for module, tree in own.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert len(places) > 200, "the classes are read"
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


SAME_NAMES_ALLOWED = {
    "perseid.cli": "one module a command, named as the command that it adds",
    "perseid.aws.handlers": "stacks that are deployed know their handlers by these paths",
    "perseid.compat.mpi": "MPI's own words: errors, status, groups",
    "perseid.compat.path": "scripts of the existing system import these names",
    "perseid.rendezvous.__main__": "Python's own name for what `python -m` runs",
    "perseid.__main__": "Python's own name for what `python -m` runs",
}
"""Packages and modules whose names may be another module's, and why."""


def test_no_two_modules_share_a_name():
    found: dict[str, list[str]] = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(["perseid", *path.relative_to(ROOT).with_suffix("").parts])
        package, _, stem = name.rpartition(".")
        if stem != "__init__" and not {package, name} & set(SAME_NAMES_ALLOWED):
            found.setdefault(stem, []).append(name)
    assert len(found) > 250, "the modules are read"
    assert {stem: names for stem, names in found.items() if len(names) > 1} == {}


def test_the_glossary_names_classes_that_exist():
    page = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text()
    trees = modules().values()
    known = {n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    named = set(re.findall(r"`(?:[a-z_.]+\.)?([A-Z][A-Za-z]*[a-z])`", page))
    assert len(named) > 20
    assert named - known == set()


def test_the_page_on_architecture_names_files_that_exist():
    top = Path(__file__).parents[2]
    page = (top / "docs" / "architecture.md").read_text()
    names = {path.name for path in ROOT.rglob("*.py")}
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+(?:\.py)?|[a-z_]+\.py)`", page))
    assert len(named) > 60
    assert [n for n in named - names if not (ROOT / n).exists() and not (top / n).exists()] == []


def test_the_page_on_architecture_names_every_package():
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    packages = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("*/**/*.py")}
    rows = set(re.findall(r"^\| `([a-z_/]+)` \|", page, re.MULTILINE))
    assert len(packages) > 30
    assert packages - rows == set()


def test_the_page_on_architecture_has_the_files_of_comm_in_order():
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    table = page.partition("each imports only those above it")[2].partition("\n## ")[0]
    rows = [
        re.findall(r"`([a-z_]+)(?:\.py|/)`", line.split("|")[1])
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    above = {name: number for number, names in enumerate(rows) for name in names}
    files = {path.stem for path in (ROOT / "comm").glob("*.py")} - {"__init__"}
    assert files - above.keys() == set()
    for name in sorted(files):
        for node in ast.walk(ast.parse((ROOT / "comm" / f"{name}.py").read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "perseid.comm"
            ):
                continue
            rest = (node.module or "").removeprefix("perseid.comm").strip(".").split(".")[0]
            for used in [rest] if rest else [alias.name for alias in node.names]:
                if used in above:
                    assert above[used] <= above[name], f"{name} imports {used}"


BRITISH = re.compile(
    r"colour|neighbour|behaviour|favour|honour|labell|dialled|modelled|signall|centre|licence|learnt|"
    r"spelt|towards|whilst|amongst|artefact|judgement|cancelled|grey\b|"
    r"(?:recogn|organ|normal|optim|quant|serial|initial|vector|summar|minim|maxim|real|util|"
    r"synchron|author|parallel|special|general|random|visual|local|capital)is(?:e|ed|es|ing|ation)\b"
)
"""Of `catalogue` the British spelling is the name on disk, and stays."""
OTHERS_WORDS = (
    "magnitude_centre",  # a key of weight files
    "labelled_anomalies",  # a key of the history of a training
    '"cancelled" not in event.reason',  # CloudFormation's word
    "CancelledError",
    "Is_cancelled",
    "Set_cancelled",
    ".cancelled",  # mpi4py's word
    "_cancelled",
    "NearestNeighbours",  # the former name, in the list of changes
)


def test_spelling_is_american():
    top = Path(__file__).parents[2]
    pages = [top / "README.md", top / "CONTRIBUTING.md", top / "SECURITY.md"]
    found = []
    for path in [*ROOT.rglob("*.py"), *(top / "docs").rglob("*.md"), *pages]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for word in OTHERS_WORDS:
                line = line.replace(word, "")
            if match := BRITISH.search(line):
                found.append(f"{path.relative_to(top)}:{number}: {match[0]}")
    assert found == []
