"""Read pickles without running code: an interpreter of pickle opcodes that cannot call anything.

Python's own unpickler calls functions even when it is restricted. This one only builds lists,
tuples, dicts and strings. A name stays a `Global`, and an opcode that would call something is
passed to a `Names` object, which returns data or refuses.

Opcodes: https://docs.python.org/3/library/pickletools.html and PEP 307, 574, 3154.
"""

from __future__ import annotations

import pickletools
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from perseid.errors import BadPartitionError, PerseidError, UnsafePickleError


@dataclass(frozen=True)
class Global:
    """The name of a class or function, never looked up."""

    module: str
    """Dotted module, e.g. ``torch.nn.modules.linear``."""
    name: str
    """Qualified name in it, e.g. ``Linear``."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Placeholder:
    """Stands for an instance of a foreign class: holds only what the pickle says about it."""

    kind: Global
    """Its class, or the function that would have created it."""
    args: tuple[Any, ...] = ()
    """Arguments that would have been passed."""
    kwargs: dict[Any, Any] = field(default_factory=dict)
    """Keyword arguments that would have been passed."""
    state: Any = None
    """What ``__setstate__`` would have received; usually the instance's ``__dict__``."""
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    """Items that would have been set by key."""
    elements: list[Any] = field(default_factory=list)
    """Elements that would have been appended or added."""

    def __repr__(self) -> str:
        return f"<placeholder of {self.kind}>"


class InertDict(dict[Any, Any]):
    """An ordered dict from the pickle; `state` is what was attached to it (e.g. ``_metadata``)."""

    state: Any = None


class Names(Protocol):
    """Gives names, calls and persistent ids of a pickle their meaning."""

    def find(self, name: Global) -> Global:
        """Return the name, or raise `UnsafePickleError`."""

    def call(self, name: Global, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> Any:
        """Return data in place of the result of a call."""

    def persistent(self, pid: Any) -> Any:
        """Return data in place of something that is stored outside of the pickle."""


def read_pickle(data: bytes, names: Names, where: str, *, largest: int = 64 << 20) -> Any:
    """Interpret one pickle, protocols 0 to 5.

    Parameters
    ----------
    data
        The pickle.
    names
        Decides about every name in it.
    where
        File (and entry) for messages.
    largest
        Largest accepted pickle, bytes.

    Raises
    ------
    UnsafePickleError
        It names or calls something that `names` refuses. No code of it was run.
    BadPartitionError
        It is corrupt or too large.
    """
    if len(data) > largest:
        raise BadPartitionError(
            f"{where} is a pickle of {len(data)} bytes; at most {largest} are read"
        )
    machine = _Machine(names, where)
    try:
        # genops only parses; what each opcode does is decided here, not by Python's unpickler.
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except PerseidError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise BadPartitionError(f"{where} is not a whole pickle: {error}") from error
    raise BadPartitionError(f"{where} is not a whole pickle: it has no end")


# fmt: off
_PUSHED = frozenset((
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4",
    "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
))
# fmt: on
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_KEYS = (str, bytes, int, float, bool, type(None))
_LONGEST_KEY = 16
"""Most parts of a tuple that is used as a key, because it is hashed at every use."""
_KEY_BITS = 64
"""Most bits of an integer used as a key or as a memo index; longer ones can be chosen to share one
hash."""
_SAME_HASH = 64
"""Most keys with the same hash in one dict. By chance there are two; thousands would make lookups
take hours."""


class _Machine:
    """The pickle machine: a stack, a memo, and one method per opcode."""

    def __init__(self, names: Names, where: str) -> None:
        self.names, self.where = names, where
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.hashes: dict[int, tuple[Any, Counter[int]]] = {}
        """Each dict, by its identity, with the number of its keys per hash."""

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _PUSHED:
            self.stack.append(_CONSTANTS.get(opcode, argument))
            return
        method: Callable[[Any], None] | None = getattr(self, "do_" + opcode.lower(), None)
        if method is None:
            raise UnsafePickleError(
                f"{self.where} uses the pickle opcode {opcode}, which is refused"
            )
        method(argument)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def push(self, value: Any) -> None:
        self.stack.append(value)

    # the stack itself

    def do_proto(self, version: int) -> None:
        if version > 5:
            raise ValueError(f"protocol {version} is unknown")

    def do_frame(self, _: Any) -> None:
        """Only a hint for buffering."""

    def do_mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def do_pop(self, _: Any) -> None:
        # As in Python's unpickler, POP right after a mark drops the mark.
        if self.stack:
            self.pop()
        else:
            self.pop_mark()

    def do_pop_mark(self, _: Any) -> None:
        self.pop_mark()

    def do_dup(self, _: Any) -> None:
        self.push(self.stack[-1])

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_put(self, index: int) -> None:
        if index.bit_length() > _KEY_BITS:
            raise ValueError("an index of the memo is too large")
        self.memo[index] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_get(self, index: int) -> None:
        self.push(self.memo[index])

    do_binget = do_long_binget = do_get

    # containers

    def do_empty_list(self, _: Any) -> None:
        self.push([])

    def do_list(self, _: Any) -> None:
        self.push(self.pop_mark())

    def do_append(self, _: Any) -> None:
        self._extend([self.pop()])

    def do_appends(self, _: Any) -> None:
        self._extend(self.pop_mark())

    do_additems = do_appends

    def do_empty_tuple(self, _: Any) -> None:
        self.push(())

    def do_tuple(self, _: Any) -> None:
        self.push(tuple(self.pop_mark()))

    def do_tuple1(self, _: Any) -> None:
        self._tuple(1)

    def do_tuple2(self, _: Any) -> None:
        self._tuple(2)

    def do_tuple3(self, _: Any) -> None:
        self._tuple(3)

    def do_empty_dict(self, _: Any) -> None:
        self.push({})

    def do_dict(self, _: Any) -> None:
        values = self.pop_mark()
        self.push({})
        self._set(values)

    def do_setitem(self, _: Any) -> None:
        value = self.pop()
        self._set([self.pop(), value])

    def do_setitems(self, _: Any) -> None:
        self._set(self.pop_mark())

    def do_empty_set(self, _: Any) -> None:
        self.push(Placeholder(self._find("builtins", "set")))

    def do_frozenset(self, _: Any) -> None:
        made = Placeholder(self._find("builtins", "frozenset"))
        made.elements = self.pop_mark()
        self.push(made)

    # names and what would be calls

    def do_global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self.push(self._find(module, name))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.push(self._find(module, name))

    def do_inst(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._call(self._find(module, name), tuple(self.pop_mark()), {})

    def do_obj(self, _: Any) -> None:
        kind, *args = self.pop_mark()
        self._call(kind, tuple(args), {})

    def do_reduce(self, _: Any) -> None:
        args = self.pop()
        self._call(self.pop(), args, {})

    do_newobj = do_reduce

    def do_newobj_ex(self, _: Any) -> None:
        kwargs, args = self.pop(), self.pop()
        self._call(self.pop(), args, kwargs)

    def do_build(self, _: Any) -> None:
        state = self.pop()
        target = self.stack[-1]
        if not isinstance(target, (Placeholder, InertDict)):
            raise UnsafePickleError(f"{self.where} sets the state of a {type(target).__name__}")
        # Kept as data. Real unpickling would call __setstate__ here, which may be an attacker's
        # code.
        target.state = state

    def do_binpersid(self, _: Any) -> None:
        self.push(self.names.persistent(self.pop()))

    def _find(self, module: Any, name: Any) -> Global:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name is not text")
        return self.names.find(Global(module, name))

    def _call(self, kind: Any, args: Any, kwargs: Any) -> None:
        if not isinstance(kind, Global):
            raise UnsafePickleError(f"{self.where} calls a {type(kind).__name__}; nothing was run")
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise TypeError(f"the arguments of {kind} are not a tuple")
        # The only place where a pickle would run code; instead it gets data, or is refused.
        self.push(self.names.call(kind, args, kwargs))

    def _tuple(self, length: int) -> None:
        values = [self.pop() for _ in range(length)]
        self.push(tuple(reversed(values)))

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.elements.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise TypeError(f"elements are added to a {type(target).__name__}")

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if isinstance(target, Placeholder):
            target.pairs.extend(pairs)
        elif isinstance(target, dict):
            for key, value in pairs:
                self._count(target, _key(key))
                target[key] = value
        else:
            raise TypeError(f"items are set on a {type(target).__name__}")

    def _count(self, target: dict[Any, Any], key: Any) -> None:
        """Refuse many keys chosen to have the same hash. Text is exempt: its hash differs in every
        process."""
        if isinstance(key, (str, bytes)) or key in target:
            return
        _, counts = self.hashes.setdefault(id(target), (target, Counter()))
        counts[hash(key)] += 1
        if counts[hash(key)] > _SAME_HASH:
            raise UnsafePickleError(
                f"{self.where} has a dict with more than {_SAME_HASH} keys that share one hash, "
                "which would take hours to read; nothing was run"
            )


def _key(key: Any) -> Any:
    """Check that a key is cheap to hash: hashing a deeply nested tuple could overflow the C
    stack."""
    flat = key if isinstance(key, tuple) else (key,)
    if len(flat) > _LONGEST_KEY:
        raise TypeError(f"a tuple of {len(flat)} parts is a key")
    for part in flat:
        if not isinstance(part, (*_KEYS, Global, Placeholder)):
            raise TypeError(f"a {type(key).__name__} is a key")
        if isinstance(part, int) and part.bit_length() > _KEY_BITS:
            raise TypeError(f"an integer of {part.bit_length()} bits is a key")
    return key
