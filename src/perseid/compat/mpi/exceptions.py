"""Errors of MPI calls."""

from __future__ import annotations

from typing import SupportsInt

from perseid.compat.mpi.constants import ERROR_CODES, ERROR_TEXTS
from perseid.errors import BadInputError

_NAMES = list(ERROR_TEXTS)


class MPIException(RuntimeError):  # noqa: N818  # programs know it as MPI.Exception
    """An error with the number of its class, like ``mpi4py.MPI.Exception``.

    Parameters
    ----------
    code
        Number of the error class.
    message
        A sentence; None for the meaning of the class.
    """

    def __init__(self, code: int = 0, message: str | None = None) -> None:
        super().__init__(code)
        # We have no codes beyond the classes.
        self.error_code = self.error_class = code
        self.error_string = message or Get_error_string(code)

    def Get_error_code(self) -> int:
        """Number of the error code."""
        return self.error_code

    def Get_error_class(self) -> int:
        """Number of the error class, which equals the error code."""
        return self.error_class

    def Get_error_string(self) -> str:
        """Description of the error."""
        return self.error_string

    def __str__(self) -> str:
        return self.error_string

    def __repr__(self) -> str:
        return f"MPI.Exception({self.error_code})"

    def __int__(self) -> int:
        return self.error_code

    def __bool__(self) -> bool:
        return self.error_code != 0

    def __hash__(self) -> int:
        return hash(self.error_code)

    def __eq__(self, other: object) -> bool:
        return self.error_code == _code(other)

    def __lt__(self, other: object) -> bool:
        return self.error_code < _code(other)

    def __le__(self, other: object) -> bool:
        return self.error_code <= _code(other)

    def __gt__(self, other: object) -> bool:
        return self.error_code > _code(other)

    def __ge__(self, other: object) -> bool:
        return self.error_code >= _code(other)


def _code(other: object) -> int:
    if isinstance(other, MPIException):
        return other.error_code
    return int(other) if isinstance(other, SupportsInt) else -1


# Both, since mpi4py raises NotImplementedError and our command line reports PerseidError.
class UnsupportedError(BadInputError, NotImplementedError):
    """A part of MPI that is not available here; the message says what to use instead."""


def failure(name: str, message: str) -> MPIException:
    """The exception for an error class, with our own message."""
    return MPIException(ERROR_CODES[name], message)


def Get_error_class(code: int) -> int:
    """The class of an error code, which equals the code."""
    return code


def Get_error_string(code: int) -> str:
    """Description of an error code."""
    if not 0 <= code < len(_NAMES):
        return f"error {code}"
    return f"{_NAMES[code]}: {ERROR_TEXTS[_NAMES[code]]}"
