"""The public interface: lazy, complete, documented, and its page as its docstrings say."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import perseid
from perseid.api.show import TableView
from perseid.api.status import RunStatus
from perseid.measure.present.text import Cell, TableColumn, TextTable

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


REFUSED = {
    "typing error": (lambda: perseid.run("x", wrld_size=2), "did you mean world_size"),
    "option of the command line": (lambda: perseid.run("x", memory=2), "did you mean memory_mb"),
    "no data": (lambda: perseid.run(3), "data is 3: give a path or URL"),
    "bytes as data": (lambda: perseid.run(b"x"), "data is b'x'"),
    "None in a list": (lambda: perseid.run(["x", None]), "data is None"),
    "bytes as results": (lambda: perseid.run("x", results=b"y"), "results is b'y': give text"),
    "no engine": (lambda: perseid.run("x", engine=None), "engine is None"),
    "class of an engine": (lambda: perseid.run("x", engine=perseid.LocalEngine), "LocalEngine()"),
    "no progress": (lambda: perseid.run("x", progress=3), "progress is 3"),
    "no run": (lambda: perseid.open_run(None), "run is None"),
    "empty run": (lambda: perseid.open_run(" "), "run is ' '"),
    "bytes as run": (lambda: perseid.resume(b"x"), "run is b'x'"),
    "no survey": (lambda: perseid.open_survey(None), "data is None"),
    "no model": (lambda: perseid.load_model(None), "model is None"),
    "nothing to plan": (lambda: perseid.plan(None, calibration="x"), "data is None"),
    "no cutouts": (lambda: perseid.load_model(threads=1).predict([1]), "not for list"),
    "no catalogue": (lambda: perseid.Catalogue.difference(None, 3), "not with 3"),
}


@pytest.mark.parametrize(("call", "said"), REFUSED.values(), ids=list(REFUSED))
def test_wrong_arguments_are_refused_with_a_sentence_before_anything_starts(
    call, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        call()
    assert isinstance(refused.value, perseid.errors.BadInputError)
    assert not list(tmp_path.iterdir())


def test_paths_may_be_path_objects_everywhere(tmp_path):
    from perseid.api.runs import request_of

    keys = {"results": tmp_path / "r", "model": tmp_path / "m.onnx", "model_path": tmp_path}
    request = request_of([tmp_path / "1.pt"], perseid.LocalEngine(), keys)
    assert (request.data, request.results) == ([str(tmp_path / "1.pt")], str(tmp_path / "r"))
    assert (request.model, request.model_path) == (str(tmp_path / "m.onnx"), str(tmp_path))


def test_a_table_is_saved_in_the_form_that_its_files_name_says(tmp_path):
    rows = ({"cost": Cell("1.5e-06", 1.5e-6)},)
    view = TableView([TextTable("Runs", (TableColumn("cost", "Cost"),), rows)])
    assert '<td style="white-space: nowrap">1.5e-06</td>' in view._repr_html_()  # not two lines
    for name, form in (("t.csv", "csv"), ("t.md", "markdown"), ("t.txt", "text"), ("t", "text")):
        view.save(tmp_path / name)
        assert (tmp_path / name).read_text() == view.render(form)
    view.save(tmp_path / "t.md", "csv")
    assert (tmp_path / "t.md").read_text() == view.render("csv")


def test_what_a_notebook_shows_last_is_html():
    status = RunStatus("running", "map", 4, 1, running=2, waiting=1, rows=10, seconds=3.0)
    assert ">running<" in status._repr_html_()
    assert "1 of 4" in status._repr_html_()


def test_a_file_is_not_a_run(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"there is no run at .*manifest\.json"):
        perseid.open_run(tmp_path / "manifest.json")


def test_an_attribute_with_a_typing_error_gets_pythons_suggestion():
    done = subprocess.run(
        [sys.executable, "-c", "import perseid; perseid.open_rum"], capture_output=True, text=True
    )
    assert "Did you mean: 'open_run'?" in done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'nothing'"):
        perseid.nothing  # noqa: B018
