"""Every library in every zip finds what it needs in the runtime of Lambda that it is meant for."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pytest
from elftools.elf.elffile import ELFFile

from perseid.aws.deploy.packaging import Package, build
from perseid.aws.deploy.wheels import MACHINES, PYTHONS, Target

NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (11, 0)}
"""Versions of Amazon Linux 2023: glibc 2.34, and libstdc++ and libgcc of GCC 11.5
(https://docs.aws.amazon.com/linux/al2023/ug/compare-with-al2.html)."""
SYSTEM = {
    "ld-linux-aarch64.so.1", "ld-linux-x86-64.so.2", "libc.so.6", "libdl.so.2", "libgcc_s.so.1",
    "libm.so.6", "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libz.so.1",
}  # fmt: skip
"""Libraries of the runtime's image; others must lie in the zip."""


@dataclass(frozen=True)
class Library:
    """What one shared object says that it needs."""

    machine: str
    needed: frozenset[str]
    """Names of other libraries."""
    versions: frozenset[tuple[str, str]]
    """(library, version), e.g. ``("libc.so.6", "GLIBC_2.28")``."""


def libraries(package: Package) -> Iterator[tuple[str, Library]]:
    with zipfile.ZipFile(package.path) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if data.startswith(b"\x7fELF"):
                yield name, read(data)


def read(data: bytes) -> Library:
    """By its segments, as the loader does: the zips' libraries have no sections any more."""
    elf = ELFFile(io.BytesIO(data))
    [dynamic] = [s for s in elf.iter_segments() if s.header.p_type == "PT_DYNAMIC"]
    tags = list(dynamic.iter_tags())
    values = {tag.entry.d_tag: tag.entry.d_val for tag in tags}
    [names] = elf.address_offsets(values["DT_STRTAB"])

    def text(offset: int) -> str:
        return data[names + offset : data.index(b"\0", names + offset)].decode()

    versions = set()
    if "DT_VERNEED" in values:  # records of Verneed with their Vernaux
        [at] = elf.address_offsets(values["DT_VERNEED"])
        for _ in range(values["DT_VERNEEDNUM"]):
            _, count, library, first, following = struct.unpack_from("<HHIII", data, at)
            entry = at + first
            for _ in range(count):
                _, _, _, name, step = struct.unpack_from("<IHHII", data, entry)
                versions.add((text(library), text(name)))
                entry += step
            at += following
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    return Library(elf["e_machine"], frozenset(needed), frozenset(versions))


def too_new(version: str) -> bool:
    """Whether AL2023 lacks it; a name that it does not know counts as lacking."""
    kind, _, number = version.partition("_")
    if kind not in NEWEST:
        return True
    try:
        return tuple(map(int, number.split("."))) > NEWEST[kind]
    except ValueError:  # GLIBC_PRIVATE
        return True


def faults(package: Package, machine: str) -> list[str]:
    inside = {PurePosixPath(name).name for name in package.entries}
    found = []
    for name, library in libraries(package):
        if library.machine != machine:
            found.append(f"{name} is for {library.machine}")
        found += [f"{name} needs {n}" for n in library.needed - SYSTEM - inside]
        found += [
            f"{name} needs {version} of {of}"
            for of, version in library.versions
            if of in SYSTEM and too_new(version)
        ]
    return sorted(found)


def check(target: Target, folder) -> None:
    packages = build(folder, target, compression=0, bytecode=False)
    machine = {"x86_64": "EM_X86_64", "arm64": "EM_AARCH64"}[target.architecture]
    assert {name: faults(package, machine) for name, package in packages.items()} == {
        "worker": [], "control": [], "tools": [],
    }  # fmt: skip
    assert sum(1 for _ in libraries(packages["worker"])) > 10


def test_libraries_fit_the_runtime_that_is_chosen_by_default(tmp_path):
    check(Target(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_libraries_fit_every_runtime_that_can_be_chosen(architecture, python, tmp_path):
    check(Target(architecture, python), tmp_path)


def test_what_amazon_linux_2_lacks_would_be_found(tmp_path, monkeypatch):
    """Its glibc is 2.26: the reason why Lambda's Python 3.11 is not offered."""
    monkeypatch.setitem(NEWEST, "GLIBC", (2, 26))
    package = build(tmp_path, Target(), compression=0, bytecode=False)["worker"]
    assert any("of libc.so.6" in fault for fault in faults(package, "EM_X86_64"))
