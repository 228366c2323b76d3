"""The structure that the source keeps: no circle of files, no long or tangled function."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import perseid
from perseid.aws.deploy.packaging import PACKAGES, modules_of

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


def imported_at_once(name: str, tree: Tree, known: set[str]) -> Iterator[str]:
    """Files that importing a file imports: not for types, nor when a function is called."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(name, ast.Module([node], []), known)
        todo += ast.iter_child_nodes(node)


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


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_of_functions_has_what_its_functions_import(package):
    trees = modules()
    files = {inside.removesuffix(".py").replace("/", ".") for inside, _ in modules_of(package)}
    inside = {name.removesuffix(".__init__") for name in files}
    entries = ("perseid.aws.handlers.", "perseid.rendezvous.__main__")
    seen, todo = set(), [name for name in inside if name.startswith(entries)]
    while todo:
        name = todo.pop()
        seen.add(name)
        needed = {*imported_at_once(name, trees[name], set(trees)), name.rpartition(".")[0]}
        assert needed - inside <= {""}, f"{name} needs them"
        todo += needed - seen - {""}
    assert len(seen) > 10


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


LONGEST_FILE = 400


def test_no_file_is_long():
    lines = {path: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {str(p.relative_to(ROOT)): n for p, n in lines.items() if n > LONGEST_FILE} == {}


UNTYPED = re.compile(r"dict\[str, Any\]|Mapping\[str, Any\]|\bJson\b")
MOST_UNTYPED = 39
"""Lines with an untyped dictionary. Those that are left are the forms of other libraries."""


def test_few_dictionaries_are_untyped():
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(ROOT.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNTYPED.search(line)
    ]
    assert len(found) <= MOST_UNTYPED, found


FOREIGN_PRIVATE = {
    "_plugins", "_replace", "_asdict", "_fields", "_parameters", "_buffers",
    "_profile_provider_builder",
}  # fmt: skip
"""Of named tuples and of torch's and botocore's objects, where nothing public does the same."""


def reached_from_outside(tree: Tree) -> Iterator[str]:
    """Private attributes that code reaches on an object of another class.

    A class reaches those of its own instances, and functions of a module those of its classes;
    a library's module is no object.
    """
    names: dict[ast.ClassDef, set[str]] = {}
    for kind in ast.walk(tree):
        if isinstance(kind, ast.ClassDef):
            inside = list(ast.walk(kind))
            own = {n.name for n in inside if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
            own |= {n.attr for n in inside if is_own(n) and isinstance(n.ctx, ast.Store)}
            own |= {n.id for n in inside if isinstance(n, ast.Name) and n.id.startswith("_")}
            names[kind] = own

    libraries = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }

    def visit(node: ast.AST, allowed: set[str]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inner = names[child] if isinstance(child, ast.ClassDef) else allowed
            if isinstance(child, ast.Attribute) and is_private(child.attr):
                of_library = isinstance(child.value, ast.Name) and child.value.id in libraries
                known = inner | FOREIGN_PRIVATE
                if not is_own(child) and not of_library and child.attr not in known:
                    yield f"{child.lineno}: {ast.unparse(child)}"
            yield from visit(child, inner)

    yield from visit(tree, set().union(*names.values()))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def is_own(node: ast.AST) -> bool:
    """Whether it is an attribute of ``self``, ``cls`` or ``super()``."""
    if not isinstance(node, ast.Attribute):
        return False
    value = node.value.func if isinstance(node.value, ast.Call) else node.value
    return isinstance(value, ast.Name) and value.id in ("self", "cls", "super")


def test_no_private_attribute_is_reached_from_outside():
    assert list(reached_from_outside(ast.parse("class A:\n def f(self, b):\n  return b._x"))) == [
        "3: b._x"
    ]
    found = {name: list(reached_from_outside(tree)) for name, tree in modules().items()}
    assert {name: reached for name, reached in found.items() if reached} == {}


PARSERS = {
    "json.load": {"perseid.aws.deploy.container": "runs without perseid, on ECS's own answer"},
    "json.loads": {"perseid.jsontext": "the one place: it catches RecursionError"},
    "json.JSONDecoder": {"perseid.measure.sources.documents": "value after value; catches it"},
    "yaml.load": {"perseid.measure.sources.exports": "logs as YAML; catches it"},
    "yaml.safe_load": {"perseid.cli.cite": "a file of this package"},
    "ast.literal_eval": {
        "perseid.measure.sources.log_files": "a dictionary as Python prints it; catches it",
        "perseid.model.python_source": "a class attribute of a model; catches it",
    },
    "ast.parse": {
        "perseid.model.python_source": "the source of a model; catches it",
        "perseid.aws.deploy.template": "a module of this package",
    },
}
"""Parsers that raise `RecursionError` for text that is nested too deeply, and who may call them."""


def dotted(node: ast.AST) -> str:
    """The name ``a.b`` of an attribute; empty for any other node."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


def test_json_of_others_is_read_by_one_function():
    found: dict[str, set[str]] = {}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if dotted(node) in PARSERS:
                found.setdefault(dotted(node), set()).add(name)
            elif isinstance(node, ast.ImportFrom) and node.module in ("json", "yaml", "ast"):
                assert not node.names, f"{name}: import {node.module} as a whole"
    assert found == {parser: set(places) for parser, places in PARSERS.items()}


def test_a_library_that_cannot_be_loaded_is_not_called_missing():
    """`library_error` tells one from the other."""
    found = {
        f"{name}:{handler.lineno}"
        for name, tree in modules().items()
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler)
        and handler.type is not None
        and "ImportError" in ast.unparse(handler.type)
        and "NotInstalledError" in ast.unparse(handler)
    }
    assert found == set()


PLACE = re.compile(r"\b(?:src|tests|benchmarks|scripts|docs|\.ci)/[\w./<>*-]*\w")
MODULE = re.compile(r"\bperseid(?:\.[A-Za-z_]\w*)+")
MODEL_KEYS = {"perseid.signature", "perseid.columns", "perseid.image_shape"}
"""Keys of an ONNX file's metadata, not modules."""


def named_in(tree: Tree) -> set[str]:
    """What a module offers: definitions, assignments and imports of its top level."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name) for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def is_there(dotted: str) -> bool:
    """Whether a dotted name of a page is a module, or something that one offers."""
    parts, trees = dotted.split("."), modules()
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if module in trees:
            rest = parts[length : length + 1]
            offered = set(dir(perseid)) if module == "perseid" else named_in(trees[module])
            return not rest or rest[0] in offered
    return False


def test_every_page_names_places_and_modules_that_exist():
    top = Path(__file__).parents[2]
    pages = [*(top / "docs").rglob("*.md"), *top.glob("[A-BD-Z]*.md"), top / "CONTRIBUTING.md"]
    seen, missing = 0, []
    for page in pages:  # the list of changes names what was
        text = page.read_text()
        for place in set(PLACE.findall(text)):
            if "<" not in place and "NAME" not in place:
                seen += 1
                found = list(top.glob(place)) if "*" in place else [top / place]
                missing += [f"{page.name}: {place}"] * (not found or not found[0].exists())
        for dotted in set(MODULE.findall(text)) - MODEL_KEYS:
            seen += 1
            missing += [f"{page.name}: {dotted}"] * ("NAME" not in dotted and not is_there(dotted))
    assert seen > 100
    assert missing == []


FOREIGN = {"Communicator", "Group", "Op", "Request", "Status"}
"""Classes of FMI and mpi4py: `compat` has them under these names, whatever else has."""


def test_no_two_classes_share_a_name():
    places: dict[str, list[str]] = {}
    for module, tree in modules().items():
        foreign = FOREIGN if module.startswith("perseid.compat") else set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name not in foreign and node.name[0] != "_":
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


TYPED = re.compile(r"(?<![\w`-])--[a-z][a-z-]+")
COMMAND = re.compile(r"`[^`]*`|``[^`]*``")
"""A whole command in a message: it is typed in a shell, whoever reads it."""
OF_COMMANDS = ("perseid.cli", "perseid.aws.deploy", "perseid.rendezvous.server",
               "perseid.explore.explore_server", "perseid.pipeline.request_keys",
               "perseid.storage.settings", "perseid.measure.sources.exports")  # fmt: skip
"""Only the command line calls these, or they name options of other programs."""
OPTIONS_ALLOWED = {
    "again with --replace (in Python, replace=True)": "said on AWS",
    "with --region or": "a template, which names a variable beside it",
    "deploy a stack with --kms-key": "what an administrator types",
    "(--scheduler": "names the Python way beside it",
    "--engine {}": "a part of a command",
    "--open?": "an option of the server",
    "--host, --port or --http-port": "options of the server",
    "--certificate?": "an option of the server",
}
"""Messages that name an option as it is typed, and why they may."""


def messages(tree: Tree) -> Iterator[tuple[int, str]]:
    """Line and text of each string that is no docstring; ``{}`` stands for what is filled in."""
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
             for part in ast.walk(node) if part is not node}  # fmt: skip
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in inner or id(node) in docs:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
            yield node.lineno, "".join(map(str, parts))


def test_messages_name_options_as_their_user_gave_them():
    """By `perseid.plaintext.option`: a program gives ``keep=``, and only a shell ``--keep``."""
    found = []
    for name, tree in modules().items():
        if name.startswith(OF_COMMANDS):
            continue
        for line, text in messages(tree):
            said = COMMAND.sub("", text)
            words = " " in said and TYPED.search(said)
            if words and not any(allowed in text for allowed in OPTIONS_ALLOWED):
                found.append(f"{name}:{line}: {text}")
    assert not found
