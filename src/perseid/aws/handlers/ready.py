"""The answer of every function to ``{"perseid_check": true}``: it starts, and its libraries load.

`perseid aws doctor` asks this. If a library was built for a newer system than the function's
runtime, its import fails, and the whole function with it.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

CHECK = "perseid_check"
"""Key that marks an event as a check."""
Event = Mapping[str, object]
"""The JSON event with which a function is called."""
Answer = dict[str, object]
"""The function's answer, as JSON."""
Handler = Callable[[Event, Any], Answer]


def answers_check(*libraries: str) -> Callable[[Handler], Handler]:
    """Let a handler answer the check by importing these libraries, without doing any work."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def either(event: Event, context: Any) -> Answer:
            if not event.get(CHECK):
                return handler(event, context)
            for library in libraries:
                # Imported here, not at the top, so that a failing check reports the library's own
                # message in an answer.
                importlib.import_module(library)
            return {"ready": True, "python": platform.python_version()}

        return either

    return decorate


def inner(event: Event, name: str) -> Event:
    """An object inside an event; empty if there is none."""
    value = event.get(name)
    return value if isinstance(value, Mapping) else {}


def count(event: Event, name: str) -> int:
    """A whole number inside an event; 0 if there is none."""
    value = event.get(name)
    return int(value) if isinstance(value, (int, float, str)) and value != "" else 0
