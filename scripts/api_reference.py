"""Write docs/reference/api.md from the docstrings of the public interface; a test compares them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import perseid
from perseid import errors
from perseid.comm import Op

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "api.md"
HEAD = """# The Python interface

`import perseid` offers what is on this page, and imports it when it is first used. It is stable:
within a minor version nothing of it changes incompatibly, and what is renamed keeps its former name
for one minor version, with a `DeprecationWarning`. What lies in sub-packages (`perseid.pipeline`,
`perseid.comm`, …) and is not named here may change. This page is made by
`scripts/api_reference.py`.
"""
WIDTH = 92
"""Characters of a signature on one line."""
ORDER = (
    "run", "resume", "open_run", "Run", "Catalogue", "estimate", "plan", "calibrate",
    "measurements", "measurements_on_aws", "Measurements", "RunRequest", "LocalEngine",
    "SlurmEngine", "DaskEngine", "AwsEngine", "sweep", "Sweep", "open_survey", "Survey",
    "SurveyInfo", "Cutouts", "load_model", "calibrate_model", "Model", "Communicator",
    "RendezvousServer", "Storage",
)  # fmt: skip
HIDDEN = {
    "Communicator": ("group",),
    "Run": ("follow", "handle", "left", "manifest", "result", "stopped"),
    "LocalEngine": ("attach", "check", "configured", "default_results", "locate", "prepare",
                    "submit"),
    "SlurmEngine": ("attach", "check", "configured", "default_results", "locate", "prepare",
                    "submit"),
    "DaskEngine": ("attach", "check", "configured", "default_results", "locate", "prepare",
                   "submit"),
    "AwsEngine": ("attach", "check", "configured", "default_results", "executions", "locate",
                  "prepare", "submit"),
    "RunRequest": ("model_post_init",),
}  # fmt: skip
"""What the command line and the engines' own interface need, and users do not."""
_SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.MULTILINE)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in ORDER:
        parts += _entry(f"perseid.{name}", getattr(perseid, name), level=2)
    return "\n".join([*parts, *_errors()]).rstrip() + "\n"


def _entry(title: str, value: Any, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{title}`\n"
    if signature := _signature(title.removeprefix("perseid."), value):
        yield f"```py\n{signature}\n```\n"
    yield _markdown(inspect.getdoc(value) or "") + "\n"
    if inspect.isclass(value):
        yield from _fields(value)
        for name, member in _members(value):
            if isinstance(member, property) or not callable(member):
                yield f"{'#' * (level + 1)} `{name}`\n"
                yield _markdown(inspect.getdoc(member) or "") + "\n"
            else:
                yield from _entry(name, member, level + 1)


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class and its bases of ours, as they are written."""
    seen = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("perseid"):
            continue
        for name, member in vars(base).items():
            plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            wanted = callable(plain) or hasattr(plain, "__get__")
            hidden = name.startswith("_") or name in HIDDEN.get(kind.__name__, ())
            if hidden or name in seen or not wanted or not inspect.getdoc(plain):
                continue
            if inspect.ismemberdescriptor(plain) or inspect.isclass(plain):
                continue
            seen.add(name)
            yield name, plain


def _fields(kind: type) -> Iterator[str]:
    """Of a dataclass: names and types; of a request its keys have a page of their own."""
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            yield f"- `{field.name}`: `{field.type}`"
        yield ""


def _signature(name: str, value: Any) -> str:
    """One line, or a parameter a line where that is too long; types as they are written."""
    hand_made = isinstance(value, type) and value.__name__ in (
        "Run",
        "Survey",
        "Model",
        "Catalogue",
    )
    if not callable(value) or hasattr(value, "model_fields") or hand_made:
        return ""
    found = inspect.signature(value)
    parts, starred = [], False
    for one in found.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and not starred:
            parts, starred = [*parts, "*"], True
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        default = "" if one.default is one.empty else f" = {_default(one.default)}"
        parts.append(f"{stars}{one.name}: {one.annotation}{default}")
    returns = "" if isinstance(value, type) else f" -> {found.return_annotation}"
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){returns}"])


def _default(value: Any) -> str:
    if isinstance(value, Op):
        return value.name.upper()
    return repr(value) if not isinstance(value, tuple) or len(value) < WIDTH else "…"


def _markdown(doc: str) -> str:
    """A NumPy-style docstring: sections become lists, examples become code."""
    pieces = _SECTION.split(doc)
    out = [_code(pieces[0])]
    for head, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if head == "Examples":
            out.append("```pycon\n" + body.replace("  # doctest: +SKIP", "").strip() + "\n```")
        else:
            out.append(f"**{head}**\n\n" + _list(body))
    return "\n\n".join(part.strip() for part in out if part.strip())


def _list(body: str) -> str:
    lines = []
    for line in _code(body.rstrip()).splitlines():
        if line and not line.startswith(" "):
            lines.append(f"- `{line.strip('`')}`")
        elif line.strip():
            lines.append(f"  {line.strip()}")
    return "\n".join(lines)


def _code(text: str) -> str:
    return text.replace("``", "`")


def _errors() -> Iterator[str]:
    yield "## `perseid.errors`\n"
    yield _code(inspect.getdoc(errors) or "") + "\n"
    yield "| class | also | when |"
    yield "| --- | --- | --- |"
    for name, value in vars(errors).items():
        if inspect.isclass(value) and value.__module__ == errors.__name__:
            also = [b.__name__ for b in value.__mro__ if b.__module__ == "builtins"]
            doc = (inspect.getdoc(value) or "").replace("``", "`").replace("\n", " ")
            yield f"| `{name}` | `{also[0]}` | {doc} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
