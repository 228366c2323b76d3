"""No bit of a result depends on how many threads a linear algebra library has."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import perseid
from perseid.errors import BadInputError
from perseid.science import Metric, Moments, fixed_order

pytestmark = pytest.mark.numbers
SOURCE = Path(perseid.__file__).parent
RESULTS = ("science", "pipeline", "model/export", "model/runtime", "survey")
"""Where numbers of a catalogue, or of a model that is written, are computed."""
LIBRARY_CALLS = {"dot", "vdot", "inner", "matmul", "tensordot", "linalg", "polyfit", "cov",
                 "corrcoef", "convolve", "correlate"}  # fmt: skip
SIZES = [1, 2, 3, 17, 90]
PROGRAM = """
import hashlib, numpy as np
from perseid.science import Metric, Moments
random = np.random.default_rng(5)
rows = random.standard_normal((700, 132)) @ random.standard_normal((132, 132))
rows = np.round(rows.astype(np.float32), 2)
moments = Moments.of(rows)
metric = Metric.of(moments, {"embedding": 64, "residual": 68})
parts = (moments.scatter, metric.matrix, metric.distance(rows))
print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""


def symmetric(n, rank=None):
    rows = np.random.default_rng(n).standard_normal((rank or 2 * n, n))
    return fixed_order.gram(rows) / len(rows)


@pytest.mark.parametrize("n", SIZES)
def test_eigenvectors_diagonalize(n):
    matrix = symmetric(n)
    values, vectors = fixed_order.eigh(matrix)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), atol=1e-12)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(n), atol=1e-12)


@pytest.mark.parametrize(
    "matrix",
    [np.zeros((4, 4)), np.ones((4, 4)), np.diag([3.0, 1.0, 1.0, 0.0]), symmetric(20, rank=5),
     1e-200 * symmetric(6), 1e150 * symmetric(6)],
    ids=["zero", "ones", "diagonal", "singular", "tiny", "huge"],
)  # fmt: skip
def test_eigenvectors_of_degenerate_matrices(matrix):
    values, vectors = fixed_order.eigh(matrix)
    scale = max(np.abs(matrix).max(), 1e-300)
    np.testing.assert_allclose((vectors * values) @ vectors.T / scale, matrix / scale, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(matrix)), atol=1e-12)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        fixed_order.eigh(np.full((3, 3), np.nan))
    with pytest.raises(BadInputError, match="too large for a covariance"):
        Metric.of(Moments.of(np.array([[1e200, 0.0], [-1e200, 1.0]])))


@pytest.mark.parametrize("n", SIZES)
def test_positive_definite_systems_are_solved(n):
    matrix, wanted = symmetric(n) + np.eye(n), np.arange(3.0 * n).reshape(n, 3)
    np.testing.assert_allclose(fixed_order.solve(matrix, matrix @ wanted), wanted, atol=1e-9)
    with pytest.raises(ValueError, match="not positive definite"):
        fixed_order.solve(-matrix, wanted)


def test_a_rows_product_does_not_depend_on_the_other_rows():
    random = np.random.default_rng(3)
    rows, matrix = random.standard_normal((500, 132)), random.standard_normal((132, 131))
    whole = fixed_order.product(rows, matrix)
    for start, stop in ((0, 1), (3, 5), (40, 104), (1, 500)):
        assert (
            fixed_order.product(rows[start:stop], matrix).tobytes() == whole[start:stop].tobytes()
        )


def test_the_bits_are_the_same_whatever_the_library_does():
    """Other thread counts, one core, another kernel of OpenBLAS: each in a process of its own."""
    settings = [{"OPENBLAS_NUM_THREADS": "1"}, {"OPENBLAS_NUM_THREADS": "2"},
                {"OPENBLAS_NUM_THREADS": "7"}, {"OPENBLAS_CORETYPE": "Haswell"}]  # fmt: skip
    digests = set()
    for environment in settings:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env={**os.environ, **environment},
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        digests.add(done.stdout)
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_no_result_goes_through_a_linear_algebra_library():
    """The kind of fault: any call below whose sums a BLAS or LAPACK may split by its threads."""
    found = []
    reports = {
        SOURCE / "model/export/compare.py",  # prints how two models differ, writes nothing
        SOURCE / "science/preference.py",  # an order of what to look at next, in no catalogue
    }
    for part in RESULTS:
        place = SOURCE / part
        for path in [place] if place.is_file() else sorted({*place.rglob("*.py")} - reports):
            for node in ast.walk(ast.parse(path.read_text())):
                product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
                call = isinstance(node, ast.Attribute) and node.attr in LIBRARY_CALLS
                if (product or call) and not ast.unparse(node).startswith(("self.svg", "plot.svg")):
                    found.append(f"{path.relative_to(SOURCE)}:{node.lineno} {ast.unparse(node)}")
    assert found == []
