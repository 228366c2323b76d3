"""The public interface: lazy, complete, documented, and its page as its docstrings say."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import perseid
from perseid.api.show import TableView
from perseid.api.status import RunStatus
from perseid.cli import main
from perseid.measure.calibration import Calibration
from perseid.measure.present.text import Cell, TableColumn, TextTable
from perseid.model.intervals import IntervalCalibration
from perseid.pipeline.claim import refuse_if_taken

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


def _shown_classes():
    """Every class of the public interface, and every class that its functions return."""
    for name in perseid.__all__:
        value = getattr(perseid, name)
        if inspect.isclass(value):
            yield value
        elif inspect.isfunction(value):
            yield value.__globals__[value.__annotations__["return"]]


def test_everything_that_a_notebook_can_show_has_html():
    shown = {*_shown_classes(), perseid.load_model(threads=1).signature.__class__}
    assert {"Advice", "Calibration", "RunPlan", "Survey", "Run"} < {one.__name__ for one in shown}
    assert [one.__name__ for one in shown if not hasattr(one, "_repr_html_")] == []


HOSTILE = "<script>x</script>"


def _pace(source=""):
    return Calibration(90, 1.9, 1.0, 1.0, 200, 20_000, 0.1, 1.2, source=source)


def _hostile_objects(folder):
    survey = folder / HOSTILE.replace("/", "")
    survey.mkdir()
    images = np.zeros((2, 5, 32, 32), np.float32)
    np.savez(survey / "<b>1.npz", image=images, **{"<i>": np.zeros(2)})
    model = perseid.load_model(threads=1)
    cutouts = perseid.Cutouts(images, further={HOSTILE: np.ones(2)})
    opened = perseid.open_survey(survey)
    pace = _pace(HOSTILE)
    result = RunStatus(HOSTILE, "ended", 1, 1)
    return [
        cutouts, opened, opened.info(), model,
        model.predict(perseid.Cutouts(images, np.ones((2, 5)))),
        perseid.plan(1e9, calibration=pace), pace, result, perseid.Storage(f"memory://a/{HOSTILE}"),
        perseid.RunRequest(data=HOSTILE, results="r"), perseid.LocalEngine(workers=2),
        perseid.AwsEngine(HOSTILE), perseid.SlurmEngine(ranks_per_task=2), perseid.DaskEngine(),
        perseid.RendezvousServer(), IntervalCalibration({0.68: 0.1}, 3, HOSTILE),
    ]  # fmt: skip


def test_html_in_a_notebook_is_short_and_escaped(tmp_path):
    for one in _hostile_objects(tmp_path):
        html = one._repr_html_()
        assert html.count("<table>") == html.count("</table>") == 1, html
        assert not re.search("<(script|b|i)>", html), html
        assert 30 < len(html) < 2000, html


def test_a_request_that_is_made_directly_is_refused_with_the_sentence_of_parse():
    for keys in ({"data": "x"}, {"data": "x", "results": "y", "world_size": 0},
                 {"data": "x", "results": "y", "lists": "z"}):  # fmt: skip
        with pytest.raises(perseid.errors.BadInputError) as parsed:
            perseid.RunRequest.parse(keys)
        with pytest.raises(perseid.errors.BadInputError) as made:
            perseid.RunRequest(**keys)
        assert str(made.value) == str(parsed.value)
        assert "pydantic" not in str(made.value)
        assert str(made.value).count("the request") == 1


def test_what_a_program_gave_is_named_as_in_python_and_an_option_as_it_was_typed(tmp_path, capsys):
    with pytest.raises(perseid.errors.BadInputError, match=r"^rate is 0: give rows per second"):
        perseid.plan(1e9, rate=0, calibration=_pace())
    for command in (["plan", "--data", "1GB"], ["run", "--data", "x", "--dry-run"]):
        with pytest.raises(SystemExit):
            main([*command, "--rate", "0"])
        assert "--rate: '0' is not a rate" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(perseid.errors.RunError, match=r"`replace=True`"):
        refuse_if_taken(perseid.Storage(tmp_path))


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
