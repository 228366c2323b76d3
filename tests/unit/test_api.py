"""The public interface: lazy, complete, documented, and its page as its docstrings say."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import perseid

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "api_reference.py"


def test_the_page_is_what_the_docstrings_say():
    spec = importlib.util.spec_from_file_location("api_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run scripts/api_reference.py"


def test_importing_costs_nothing_and_names_come_when_they_are_used():
    program = (
        "import sys; before = set(sys.modules); import perseid\n"
        "new = set(sys.modules) - before\n"
        "assert 'perseid.api.run' not in new and 'numpy' not in new, new\n"
        "assert perseid.Storage.__name__ == 'Storage'\n"
        "assert 'pydantic' not in sys.modules and 'rich' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_that_it_does_not_show():
    program = (
        "import sys; from perseid.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'rich', 'pydantic', 'obstore', 'perseid.api.run', 'perseid.storage'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [n for n in perseid.__all__ if n != "__version__"])
def test_every_name_is_there_and_documented(name):
    value = getattr(perseid, name)
    assert name in dir(perseid)
    assert len(inspect.getdoc(value)) > 40
    if callable(value) and value.__module__.startswith("perseid.api"):
        assert "Examples\n--------" in inspect.getdoc(value), f"perseid.{name} has no example"


def test_every_method_of_a_public_class_is_documented():
    classes = [
        value for name in perseid.__all__ if inspect.isclass(value := getattr(perseid, name))
    ]
    bases = {base for one in classes for base in one.__mro__ if base.__module__[:7] == "perseid"}
    methods = {
        f"{base.__name__}.{name}": value
        for base in bases
        for name, value in vars(base).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }
    assert len(methods) > 100
    assert [name for name, value in methods.items() if not inspect.getdoc(value)] == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'nothing'"):
        perseid.nothing  # noqa: B018
