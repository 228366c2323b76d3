"""Linear algebra whose sums are always taken in one order, so that its bits are reproducible.

A BLAS or LAPACK splits its sums by the number of threads that it finds, which depends on the
machine, on the memory of a Lambda function and on the modules imported before. A catalogue must not
depend on that, so everything that affects a result is computed here, with element-wise operations
and NumPy's own ``einsum`` loops (which call no library unless ``optimize`` is set). This takes a
few times as long as a BLAS, but the arrays are small compared with the model's work.
"""

from __future__ import annotations

from math import copysign, frexp, hypot, isfinite

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
MAX_SWEEPS = 60
"""Most QL iterations per eigenvalue. Two are typical, so reaching this means that values are not
finite."""


def product(a: Matrix, b: Matrix) -> Matrix:
    """Matrix product of (n, k) and (k, m); a row's bits do not depend on the other rows."""
    # `a @ b` would go to the BLAS, whose blocking of the sum depends on threads and processor.
    result: Matrix = np.einsum("nk,km->nm", a, b, optimize=False)
    return result


def gram(rows: Matrix) -> Matrix:
    """``rows.T @ rows`` of (n, d): symmetric (d, d)."""
    result: Matrix = np.einsum("ni,nj->ij", rows, rows, optimize=False)
    return result


def cholesky(a: Matrix) -> Matrix:
    """Lower triangular L with ``L @ L.T == a`` of a symmetric positive definite (n, n).

    Raises
    ------
    ValueError
        `a` is not positive definite.
    """
    left = np.array(a, np.float64)
    for k in range(len(left)):
        pivot = left[k, k]
        if not pivot > 0.0:
            raise ValueError(f"the matrix is not positive definite: pivot {k} is {pivot}")
        left[k:, k] /= np.sqrt(pivot)
        column = left[k + 1 :, k]
        # Only element-wise operations: one subtraction per entry and step, always in the same
        # order.
        left[k + 1 :, k + 1 :] -= column[:, None] * column
    return np.tril(left)


def solve(a: Matrix, b: Matrix) -> Matrix:
    """The x (n, m) of ``a @ x == b`` for a symmetric positive definite `a` (n, n).

    Raises
    ------
    ValueError
        `a` is not positive definite.
    """
    lower, x = cholesky(a), np.array(b, np.float64)
    for k in range(len(x)):
        x[k] = (x[k] - np.einsum("j,jm->m", lower[k, :k], x[:k])) / lower[k, k]
    for k in reversed(range(len(x))):
        x[k] = (x[k] - np.einsum("j,jm->m", lower[k + 1 :, k], x[k + 1 :])) / lower[k, k]
    return x


def eigh(a: Matrix) -> tuple[NDArray[np.float64], Matrix]:
    """Eigenvalues (n,), ascending, and eigenvectors (n, n), as columns, of a symmetric (n, n).

    Householder's reduction to a tridiagonal matrix, then implicit QL steps (Wilkinson & Reinsch,
    "Handbook for Automatic Computation", volume II, 1971, contributions II/2 and II/4). About
    0.1 s at n = 100, 10 s at n = 1,000.

    Raises
    ------
    ValueError
        The iteration does not converge because `a` has values that are not finite.
    """
    largest = float(np.max(np.abs(a), initial=0.0))
    # Scaling by a power of two changes exponents only, so it rounds nothing.
    exponent = frexp(largest)[1] if isfinite(largest) else 0
    # After exact scaling, squares of the values neither overflow nor underflow.
    diagonal, beside, vectors = _tridiagonal(np.ldexp(a, -exponent))
    values = np.ldexp(_implicit_ql(diagonal, beside, vectors), exponent)
    # Stable: equal eigenvalues keep the order in which they were found, which is always the same.
    order = np.argsort(values, kind="stable")
    return values[order], np.ascontiguousarray(vectors[order].T)


def _tridiagonal(a: Matrix) -> tuple[list[float], list[float], Matrix]:
    """Diagonal (n), off-diagonal (n - 1), and the transformation with vectors as rows."""
    left = np.array(a, np.float64)
    n = len(left)
    rows = np.eye(n)
    beside = []
    for k in range(n - 1):
        reflector = left[k + 1 :, k].copy()
        size = float(np.sqrt(np.sum(reflector * reflector)))
        # The sign that avoids subtracting two nearly equal numbers in the next line.
        target = -copysign(size, reflector[0])
        beside.append(target)
        reflector[0] -= target
        square = float(np.sum(reflector * reflector))
        if square == 0.0:  # the column is already reduced
            continue
        rest = left[k + 1 :, k + 1 :]
        reflector *= np.sqrt(2.0 / square)  # so that I - r r^T is the reflection
        image = np.einsum("ij,j->i", rest, reflector)
        image -= 0.5 * float(np.sum(image * reflector)) * reflector
        rest -= reflector[:, None] * image + image[:, None] * reflector
        below = rows[k + 1 :]
        below -= reflector[:, None] * np.einsum("i,ij->j", reflector, below)
    return [float(value) for value in np.diag(left)], beside, rows


def _implicit_ql(diagonal: list[float], beside: list[float], rows: Matrix) -> Matrix:
    """Eigenvalues of a tridiagonal matrix; `rows` are rotated along to its eigenvectors."""
    values, off = diagonal, [*beside, 0.0]
    for first in range(len(values)):
        for _ in range(MAX_SWEEPS):
            last = _first_negligible(values, off, first)
            if last == first:
                break
            _ql_sweep(values, off, rows, first, last)
        else:
            raise ValueError("no eigenvalues were found: the matrix has values that are not finite")
    return np.array(values)


def _first_negligible(values: list[float], off: list[float], first: int) -> int:
    """The end of the block that starts at `first`, where the off-diagonal value is negligible."""
    for m in range(first, len(values) - 1):
        size = abs(values[m]) + abs(values[m + 1])
        # A value is negligible if it does not change the sum in this precision, so no tolerance is
        # needed.
        if abs(off[m]) + size == size:
            return m
    return len(values) - 1


def _ql_sweep(values: list[float], off: list[float], rows: Matrix, first: int, last: int) -> None:
    """One implicit QL step with Wilkinson's shift over the block from `first` to `last`."""
    g = (values[first + 1] - values[first]) / (2.0 * off[first])
    # hypot avoids the overflow and underflow of a sum of squares.
    g = values[last] - values[first] + off[first] / (g + copysign(hypot(g, 1.0), g))
    sine, cosine, shift = 1.0, 1.0, 0.0
    for i in range(last - 1, first - 1, -1):
        f, b = sine * off[i], cosine * off[i]
        radius = hypot(f, g)
        off[i + 1] = radius
        if radius == 0.0:  # the block splits here
            values[i + 1] -= shift
            off[last] = 0.0
            return
        sine, cosine = f / radius, g / radius
        g = values[i + 1] - shift
        radius = (values[i] - g) * sine + 2.0 * cosine * b
        shift = sine * radius
        values[i + 1] = g + shift
        g = cosine * radius - b
        upper = sine * rows[i] + cosine * rows[i + 1]
        rows[i] = cosine * rows[i] - sine * rows[i + 1]
        rows[i + 1] = upper
    values[first] -= shift
    off[first], off[last] = g, 0.0
