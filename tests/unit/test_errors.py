"""The error classes: their names, the built-ins they inherit, and the names of version 0.1."""

import ast
import importlib
import inspect
import pickle
from pathlib import Path

import pytest

import perseid
from perseid import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and value.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_ends_in_error_and_is_a_perseid_error(kind):
    assert kind.__name__.endswith("Error")
    assert issubclass(kind, errors.PerseidError)
    assert str(kind("one sentence")) == "one sentence"


@pytest.mark.parametrize(("former", "name"), errors.FORMER_NAMES.items())
def test_a_former_name_is_the_class_of_today_with_a_warning(former, name):
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(importlib.import_module("perseid.errors"), former) is getattr(errors, name)
    assert errors.current_name(former) == errors.current_name(name) == name


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="Unknown"):
        errors.Unknown  # noqa: B018


BUILT_IN = {
    errors.BadInputError: ValueError,
    errors.BadPartitionError: ValueError,
    errors.BadModelError: ValueError,
    errors.NotInstalledError: ImportError,
    errors.StorageError: OSError,
    errors.NotFoundError: FileNotFoundError,
    errors.ForbiddenError: PermissionError,
    errors.AlreadyExistsError: FileExistsError,
    errors.RendezvousError: ConnectionError,
    errors.RendezvousRefusedError: ConnectionRefusedError,
    errors.JobKeyRefusedError: PermissionError,
    errors.RendezvousTimeoutError: TimeoutError,
    errors.PeerLostError: ConnectionError,
    errors.MismatchedCollectiveError: ValueError,
}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_is_a_built_in_error_and_survives_pickling(kind):
    """A rank of another process raises the same error, with the same sentence."""
    assert issubclass(kind, BUILT_IN.get(kind, (ValueError, OSError, RuntimeError))) or (
        kind is errors.PerseidError
    )
    again = pickle.loads(pickle.dumps(kind("one sentence")))
    assert (type(again), str(again), vars(again)) == (kind, "one sentence", vars(kind("")))


def test_fields_of_an_error_survive_pickling():
    error = pickle.loads(pickle.dumps(errors.PeerLostError("rank 2 is lost", 2)))
    assert (str(error), error.rank) == ("rank 2 is lost", 2)


def own_exceptions():
    """Every exception class of the package, internal ones included."""
    root = Path(perseid.__file__).parent
    for path in sorted(root.rglob("*.py")):
        names = [node.name for node in ast.parse(path.read_text()).body
                 if isinstance(node, ast.ClassDef) and node.name.endswith("Error")]  # fmt: skip
        if names:
            parts = path.relative_to(root.parent).with_suffix("").parts
            module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
            yield from (getattr(module, name) for name in names)


@pytest.mark.parametrize("kind", own_exceptions(), ids=lambda kind: kind.__name__)
def test_internal_errors_survive_pickling_too(kind):
    """Some tools carry the causes of an error along to another process."""
    own = inspect.isfunction(kind.__init__)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:] if own else []
    required = [one for one in parameters if one.default is one.empty]
    error = kind(*(7 for _ in required))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert vars(again) == vars(error)
