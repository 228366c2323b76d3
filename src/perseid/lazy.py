"""Names that a package offers and imports only when they are first used (PEP 562).

A worker starts as quickly as its imports: what one name of a package needs must not load the rest.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package.

    Parameters
    ----------
    package
        Its ``__name__``.
    places
        The module of each name; after a colon the name there if it is another, or nothing if the
        name means the module itself.
    """

    def getattr_of_package(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, colon, attribute = places[name].partition(":")
        found: Any = importlib.import_module(module)
        if attribute or not colon:
            found = getattr(found, attribute or name)
        setattr(sys.modules[package], name, found)
        return found

    return getattr_of_package
