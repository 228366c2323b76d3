"""Parts of installed packages that a worker's package leaves out, so that it stays small."""

from __future__ import annotations

import fnmatch
import struct
from collections.abc import Sequence
from pathlib import PurePosixPath

EVERYWHERE = (
    "__pycache__", "*.pyc", "*.pyi", "py.typed", "*.h", "*.hpp", "*.a", "*.pxd", "*.pyx", "tests",
    "testing", "*.md", "*.txt",
)  # fmt: skip
"""Left out of every package: files with these names, and folders with these names including their
contents."""
NUMPY_FOR_SCRIPTS = (
    "random", "polynomial", "ma", "fft", "rec", "char", "strings", "ctypeslib",
    "lib/recfunctions.py", "matlib.py", "linalg/lapack_lite*.so", "core",
)  # fmt: skip
"""Parts of numpy that our own worker never imports, but a user's script may."""
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "numpy": (
        "f2py", "distutils", "doc", "typing/mypy_plugin.py", "_pyinstaller", "_core/include",
        "_core/lib", "conftest.py", "_core/_*_tests.*.so", "_core/_simd.*.so", *NUMPY_FOR_SCRIPTS,
    ),
    "onnxruntime": (
        "transformers", "quantization", "tools", "datasets", "backend", "training",
        "capi/libonnxruntime.so*", "capi/onnxruntime_collect_build_info.py",
        "*ThirdPartyNotices*", "LICENSE",
    ),
    "obstore": ("fsspec.py", "auth"),
    "perseid": (
        "cli", "api", "explore", "aws", "measure", "engines", "survey/data", "model/data",
        "__main__.py",
        "model/training", "model/export",
        "survey/simulation",
    ),
}  # fmt: skip
"""Left out of one package, as paths relative to it; a worker imports none of them."""
COMPANIONS = {"numpy": ("numpy.libs",)}
"""Folders of shared libraries beside a package."""


def left_out(path: str, patterns: Sequence[str]) -> bool:
    """Whether a file (path relative to its package) is not needed: it or one of its folders
    matches."""
    parts = PurePosixPath(path).parts
    if any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in EVERYWHERE):
        return True
    return any(
        fnmatch.fnmatchcase("/".join(parts[:depth]), pattern)
        for depth in range(1, len(parts) + 1)
        for pattern in patterns
    )


def drop_symbols(library: bytes) -> bytes:
    """A shared library cut off behind its last loaded byte, which removes its symbol tables.

    The loader reads only program headers (ELF-64, https://refspecs.linuxfoundation.org/elf).
    Anything but a 64-bit little-endian ELF file is returned unchanged.
    """
    if library[:6] != b"\x7fELF\x02\x01":
        return library
    data = bytearray(library)
    first, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    headers = [struct.unpack_from("<IIQQQQ", data, first + 56 * i) for i in range(count)]
    # Kind 1 is PT_LOAD: what the loader maps into memory. Sections behind it are for debuggers.
    end = max(offset + size for kind, _, offset, _, _, size in headers if kind == 1)
    struct.pack_into("<Q", data, 40, 0)  # declare that there are no section headers any more
    struct.pack_into("<HHH", data, 58, 0, 0, 0)
    return bytes(data[:end])
