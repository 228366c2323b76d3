"""What every function answers to ``{"perseid_check": true}``: it starts, and its libraries load.

`perseid aws doctor` asks this. A library that was built for a newer system than the function's
runtime fails on import, and the whole function with it.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

CHECK = "perseid_check"
"""Key of an event that asks for nothing else."""
Event = Mapping[str, object]
"""The JSON event with which a function is called."""
Answer = dict[str, object]
"""The function's JSON answer."""
Handler = Callable[[Event, Any], Answer]


def answers_check(*libraries: str) -> Callable[[Handler], Handler]:
    """Have a handler answer the check by importing these libraries; it does no work then."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def either(event: Event, context: Any) -> Answer:
            if not event.get(CHECK):
                return handler(event, context)
            for library in libraries:
                # Here and not at the top: the check is to fail with the library's own message, in
                # an answer.
                importlib.import_module(library)
            return {"ready": True, "python": platform.python_version()}

        return either

    return decorate


def inner(event: Event, name: str) -> Event:
    """An object inside an event; an empty one where there is none."""
    value = event.get(name)
    return value if isinstance(value, Mapping) else {}


def count(event: Event, name: str) -> int:
    """A whole number inside an event; 0 where there is none."""
    value = event.get(name)
    return int(value) if isinstance(value, (int, float, str)) and value != "" else 0
