"""A model that is a Python class: where its code is, and what identifies it.

The source is only located and read here, never run: a run that begins or resumes compares digests
before any rank imports the code.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perseid.errors import BadModelError
from perseid.model.files import sha256_of
from perseid.plaintext import option

PREFIX = "python:"
"""Prefix of such a model's name, ``python:package.module:Class``."""
FILES = "files"
"""Attribute of the class that names further files, such as its weights or its own modules."""

added: set[str] = set()
"""Folders of models that this process has put on its import path; each is valid for one model."""


@dataclass(frozen=True)
class PythonSource:
    """The class of a model, located in its source file."""

    spec: str
    """The specification given by the user."""
    module: str
    """Dotted name of the module."""
    name: str
    """Name of the class."""
    path: Path
    """Path of the module's source."""
    files: tuple[Path, ...] | None
    """Further files that the class declares; None if it declares nothing."""

    def digest(self) -> str:
        """``sha256:`` of the source and of all declared files, including their names."""
        lines = [f"{sha256_of(self.path)}\n"]
        for file in self.files or ():
            try:
                lines.append(f"{sha256_of(file)} {file.name}\n")
            except OSError as error:
                raise BadModelError(
                    f"the model {self.spec} declares the file {file}, which cannot be read "
                    f"({error.strerror}): put it there, or take it out of `{FILES}`"
                ) from error
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def is_python(model: object) -> bool:
    """Whether a model is specified as a Python class."""
    return str(model).startswith(PREFIX)


def find_source(spec: str, folder: str = "") -> PythonSource:
    """Locate a model's source without importing anything.

    Parameters
    ----------
    spec
        ``python:package.module:Class``.
    folder
        Folder that is searched for the module after the installed modules; empty for none.

    Raises
    ------
    BadModelError
        The specification does not have this form, or the module or class does not exist.
    """
    module, colon, name = spec.removeprefix(PREFIX).partition(":")
    words = [*module.split("."), name]
    if not colon or not all(word.isidentifier() for word in words):
        raise BadModelError(f"the model {spec} is not of the form python:package.module:Class")
    path = _find(module.split("."), [*_installed(), *([folder] if folder else [])])
    if path is None:
        where = f", nor in {folder}" if folder else ""
        raise BadModelError(
            f"the model {spec} has no module {module} where its workers run: it is not installed "
            f"there{where}; install it, or name its folder by {option('model_path')}"
        )
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise BadModelError(
            f"{path}, of the model {spec}, is not a Python source: {error}"
        ) from error
    except (MemoryError, RecursionError):
        raise BadModelError(
            f"{path}, of the model {spec}, is not a Python source: it is nested too deeply"
        ) from None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return PythonSource(spec, module, name, path, _declared(node, path, spec))
    raise BadModelError(f"{path} defines no class {name}, which the model {spec} names")


def _installed() -> list[str]:
    """Folders in which a worker finds modules: neither the current folder nor that of a program."""
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    skipped = {
        "",
        *added,
        str(Path.cwd()),
        *([str(Path(program).absolute().parent)] if program else ()),
    }
    kept = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [place for place in sys.path if place not in skipped or place in kept if place]


def _find(parts: Sequence[str], places: Sequence[str]) -> Path | None:
    """Path of the source of a dotted module; for a package, its ``__init__.py``."""
    found: importlib.machinery.ModuleSpec | None = None
    for number in range(len(parts)):
        found = importlib.machinery.PathFinder.find_spec(".".join(parts[: number + 1]), places)
        if found is None:
            return None
        places = list(found.submodule_search_locations or ())
    origin = found.origin if found is not None else None
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def _declared(node: ast.ClassDef, path: Path, spec: str) -> tuple[Path, ...] | None:
    for line in node.body:
        targets = line.targets if isinstance(line, ast.Assign) else []
        if isinstance(line, ast.AnnAssign) and line.value is not None:
            targets = [line.target]
        if any(isinstance(target, ast.Name) and target.id == FILES for target in targets):
            try:
                names = ast.literal_eval(line.value)  # type: ignore[attr-defined]
                return tuple(path.parent / str(name) for name in names)
            except (ValueError, TypeError, RecursionError) as error:
                raise BadModelError(
                    f"the model {spec} must declare `{FILES}` as a list of texts: paths beside its "
                    "source"
                ) from error
    return None
