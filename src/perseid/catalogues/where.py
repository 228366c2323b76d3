"""Conditions on rows of a catalogue: comparisons with ``and``, ``or``, ``not`` and parentheses.

The language is parsed here, and no part of a condition is ever executed as code::

    condition := term [or term]...        term := factor [and factor]...
    factor    := not factor | ( condition ) | name test
    test      := == value | != value | < value | <= value | > value | >= value
               | in ( value, ... ) | is null | is not null
    value     := 12 | -0.5 | 1e-3 | 'text' | true | false

A name with characters other than letters, digits and ``_`` must be in double quotes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from perseid.errors import BadInputError
from perseid.plaintext import one_line
from perseid.survey.formats.arrow import compute_module, pyarrow_module

Literal = int | float | str | bool
DEEPEST = 50
"""Maximum nesting of parentheses and ``not``."""
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    |'(?P<text>(?:[^']|'')*)'
    |"(?P<quoted>[^"]+)"
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>==|!=|<>|<=|>=|=|<|>|\(|\)|,))""",
    re.VERBOSE,
)
# SQL's signs are understood as well, since users know them from ADQL.
_COMPARISONS = {"=": "==", "<>": "!="} | {sign: sign for sign in ("==", "!=", "<", "<=", ">", ">=")}
_HELP = "; write comparisons such as z_pred > 0.1 and flag == 0"


@dataclass(frozen=True)
class _Token:
    kind: str
    """``number``, ``text``, ``quoted``, ``word``, ``sign``, or ``end``."""
    text: str
    start: int
    """Position in the condition, in characters."""


@dataclass(frozen=True)
class Where:
    """A condition on the rows of a table.

    Examples
    --------
    >>> where = Where.parse("z_pred > 0.1 and not (flag != 0 or label is null)")
    >>> where.columns
    ('z_pred', 'flag', 'label')
    """

    text: str
    """The condition as the user wrote it."""
    columns: tuple[str, ...]
    """Names of columns in it, in the order of their first appearance."""
    _build: Callable[[Any], Any]
    """Function that makes an Arrow expression for an Arrow schema."""

    @classmethod
    def parse(cls, text: str) -> Where:
        """Parse a condition; raises `BadInputError` that says where it is invalid."""
        parser = _Parser(text)
        build = parser.condition()
        parser.expect_end()
        return cls(text, tuple(dict.fromkeys(parser.names)), build)

    def expression(self, schema: Any) -> Any:
        """The ``pyarrow.compute.Expression`` for tables of this schema.

        Raises
        ------
        BadInputError
            The table lacks a column, or a column cannot be compared with the value.
        """
        for name in self.columns:
            if name not in schema.names:
                raise BadInputError(
                    f"the condition {one_line(self.text)!r} names the column {one_line(name)!r}, "
                    f"which the catalogue does not have: it has {', '.join(schema.names)}"
                )
        return self._build(schema)


class _Parser:
    """Recursive-descent parser of the tokens of one condition."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split()
        self._at = 0
        self._depth = 0
        self.names: list[str] = []

    def condition(self) -> Callable[[Any], Any]:
        return self._chain("or", lambda: self._chain("and", self._factor))

    def expect_end(self) -> None:
        if self._peek().kind != "end":
            raise self._wrong("this is not expected here")

    def _chain(self, word: str, part: Callable[[], Callable[[Any], Any]]) -> Callable[[Any], Any]:
        parts = [part()]
        while self._take_word(word):
            parts.append(part())

        def build(schema: Any) -> Any:
            # Built only here, because the types of columns decide how values are compared.
            built = [one(schema) for one in parts]
            whole = built[0]
            for one in built[1:]:
                whole = whole & one if word == "and" else whole | one
            return whole

        return build

    def _factor(self) -> Callable[[Any], Any]:
        if self._take_word("not"):
            inner = self._deeper(self._factor)
            return lambda schema: ~inner(schema)
        if self._take_sign("("):
            inner = self._deeper(self.condition)
            if not self._take_sign(")"):
                raise self._wrong("a parenthesis is not closed")
            return inner
        return self._test()

    def _deeper(self, part: Callable[[], Callable[[Any], Any]]) -> Callable[[Any], Any]:
        # Bounded, because the parser is recursive and would end in a RecursionError.
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._wrong(f"more than {DEEPEST} parentheses are nested")
        inner = part()
        self._depth -= 1
        return inner

    def _test(self) -> Callable[[Any], Any]:
        token = self._next()
        if token.kind not in ("word", "quoted"):
            raise self._wrong("a column's name is expected", token)
        name = token.text
        self.names.append(name)
        sign = self._next()
        if sign.kind == "sign" and sign.text in _COMPARISONS:
            value = self._value()
            return lambda schema: _compare(schema, name, _COMPARISONS[sign.text], value)
        if sign.kind == "word" and sign.text.lower() == "in":
            values = self._values()
            return lambda schema: _among(schema, name, values)
        if sign.kind == "word" and sign.text.lower() == "is":
            wanted = not self._take_word("not")
            if not self._take_word("null"):
                raise self._wrong("'null' is expected after 'is'")
            return lambda schema: _is_null(name, wanted)
        raise self._wrong("a comparison such as == or < is expected", sign)

    def _values(self) -> list[Literal]:
        if not self._take_sign("("):
            raise self._wrong("'(' is expected after 'in'")
        values = [self._value()]
        while self._take_sign(","):
            values.append(self._value())
        if not self._take_sign(")"):
            raise self._wrong("a parenthesis is not closed")
        return values

    def _value(self) -> Literal:
        token = self._next()
        if token.kind == "text":
            # Two quotes stand for one, as in SQL.
            return token.text.replace("''", "'")
        if token.kind == "word" and token.text.lower() in ("true", "false"):
            return token.text.lower() == "true"
        if token.kind != "number":
            raise self._wrong("a number or a text in single quotes is expected", token)
        # Integers stay integers: as floats, ids beyond 2**53 would be rounded.
        whole = re.fullmatch(r"[-+]?\d+", token.text)
        return int(token.text) if whole else float(token.text)

    def _split(self) -> list[_Token]:
        tokens, at = [], 0
        while self._text[at:].strip():
            match = _TOKEN.match(self._text, at)
            if match is None or match.lastgroup is None:
                start = at + len(self._text[at:]) - len(self._text[at:].lstrip())
                raise self._wrong("this cannot be read", _Token("", self._text[start:], start))
            kind = match.lastgroup
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        return [*tokens, _Token("end", "", len(self._text))]

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._peek()
        self._at += token.kind != "end"
        return token

    def _take_word(self, word: str) -> bool:
        return self._take("word", word)

    def _take_sign(self, sign: str) -> bool:
        return self._take("sign", sign)

    def _take(self, kind: str, text: str) -> bool:
        token = self._peek()
        found = token.kind == kind and token.text.lower() == text
        self._at += found
        return found

    def _wrong(self, what: str, token: _Token | None = None) -> BadInputError:
        token = token or self._peek()
        place = f"at {one_line(token.text[:20])!r}" if token.text else "at its end"
        return BadInputError(
            f"the condition {one_line(self._text)!r} cannot be read: {what} ({place}){_HELP}"
        )


def _compare(schema: Any, name: str, sign: str, value: Literal) -> Any:
    pa = pyarrow_module()
    kind, column = schema.field(name).type, compute_module().field(name)
    if pa.types.is_integer(kind) and not isinstance(value, str | bool):
        sign, value = _in_whole_numbers(sign, value)
        limits = np.iinfo(kind.to_pandas_dtype())
        if not limits.min <= value <= limits.max:  # the same answer for all values
            above = value > limits.max
            answer = sign == "!=" or (sign in ("<", "<=") if above else sign in (">", ">="))
            return column.is_valid() & compute_module().scalar(answer)
    one = _scalar(schema, name, value)
    compared = {
        "==": column == one,
        "!=": column != one,
        "<": column < one,
        "<=": column <= one,
        ">": column > one,
        ">=": column >= one,
    }
    return compared[sign]


def _in_whole_numbers(sign: str, value: float) -> tuple[str, int]:
    """A comparison with an integer that is equivalent for an integer column.

    It keeps ids beyond 2**53 from being compared as floating-point numbers.
    """
    if value == math.inf or value == -math.inf:
        return sign, (1 << 70) if value > 0 else -(1 << 70)  # beyond the range of any column
    if value == math.floor(value):
        return sign, int(value)
    below = math.floor(value)
    # No integer equals a fraction; 2**70 is a value that no column reaches.
    if sign in ("==", "!="):
        return sign, 1 << 70
    return ("<=" if sign.startswith("<") else ">"), below


def _among(schema: Any, name: str, values: list[Literal]) -> Any:
    whole = _compare(schema, name, "==", values[0])
    for value in values[1:]:
        whole = whole | _compare(schema, name, "==", value)
    return whole


def _is_null(name: str, wanted: bool) -> Any:
    column = compute_module().field(name)
    # NaN counts as missing: other formats cannot tell the two apart.
    return column.is_null(nan_is_null=True) if wanted else ~column.is_null(nan_is_null=True)


def _scalar(schema: Any, name: str, value: Literal) -> Any:
    """The value as the type of the column, so that ids beyond 2**53 are compared exactly."""
    pa = pyarrow_module()
    kind = schema.field(name).type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if is_text != isinstance(value, str) or pa.types.is_boolean(kind) != isinstance(value, bool):
        wanted = "a text: write the value in single quotes"
        if not is_text:
            wanted = "true or false" if pa.types.is_boolean(kind) else f"of type {kind}"
        raise BadInputError(f"{one_line(name)} cannot be compared with {value!r}: it is {wanted}")
    try:
        return pa.scalar(value, kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise BadInputError(
            f"{one_line(name)} cannot be compared with {value!r}: its type is {kind}"
        ) from error
