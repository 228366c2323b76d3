"""Build the zip packages of the functions from wheels, perseid and a model; the same input gives
the same zip."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import py_compile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import perseid
from perseid.aws.deploy.trim import LEFT_OUT, NUMPY_FOR_SCRIPTS, drop_symbols, left_out
from perseid.aws.deploy.wheels import Target, fetch, own_python, pins
from perseid.errors import BadInputError
from perseid.model.files import local_files
from perseid.model.identity import DEFAULT_IDENTITY, shipped_identity
from perseid.model.intervals import BESIDE, SHIPPED
from perseid.model.runtime import ModelRuntime
from perseid.model.signature import BESIDE as SIGNATURE_BESIDE
from perseid.model.signature_files import signature_beside

MIB = 1 << 20
UNZIPPED_LIMIT = 250 * MIB
"""Size limit of a function with all its layers, in bytes
(https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html)."""
PACKAGES = ("worker", "control", "tools")
"""Packages and what they contain. ``worker`` works on ranks, ``control`` begins and ends runs.
``tools`` holds the rendezvous, the connection test and the DNS updater, and no third-party
package."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ALSO_LEFT_OUT = {"numpy": NUMPY_FOR_SCRIPTS}  # kept, because scripts may import them
_TOOLS = (
    "__init__.py", "durations.py", "errors.py", "jsontext.py", "lazy.py", "linux.py",
    "rendezvous/*",
    "aws/__init__.py", "aws/handlers/__init__.py", "aws/handlers/log.py", "aws/handlers/ready.py",
    "aws/handlers/ping.py", "aws/handlers/dns.py", "aws/handlers/service_address.py",
    "aws/handlers/service_lifetime.py",
)  # fmt: skip
_CONTROL_LEFT_OUT = (
    "cli",
    "api",
    "explore",
    "survey/data",
    "model/data",
    "model/training",
    "__main__.py",
)
_MODELS = "perseid/model/data"
_WORKER_HANDLERS = (
    "aws/__init__.py", "aws/handlers/__init__.py", "aws/handlers/log.py", "aws/handlers/ready.py",
    "aws/handlers/worker.py", "aws/handlers/probe.py", "aws/handlers/secret.py",
)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A zip that is ready to be uploaded."""

    name: str
    path: Path
    digest: str
    """Digest of the contents (names and bytes), which is the same on any machine for the same
    source."""
    entries: Mapping[str, int]
    """Unzipped bytes of each file, by its path in the zip."""

    @property
    def unzipped(self) -> int:
        """Number of bytes that count against `UNZIPPED_LIMIT`."""
        return sum(self.entries.values())

    @property
    def zipped(self) -> int:
        """Size of the zip in bytes."""
        return self.path.stat().st_size

    @property
    def key(self) -> str:
        """Key of the upload below the stack's prefix; new content has a new key."""
        return f"code/{self.name}-{self.digest[:20]}.zip"


def build(
    folder: Path,
    target: Target,
    *,
    model: Path | None = None,
    bytecode: bool | None = None,
    interpreter: str | None = None,
    machine: str | None = None,
    cache: Path | None = None,
    compression: int = 6,
) -> dict[str, Package]:
    """Build all packages.

    Parameters
    ----------
    folder
        Folder for the zips. Zips of earlier contents are removed from it, and a current one is
        reused.
    target
        Platform on which the functions run.
    model
        An exported model that becomes the ``default`` one, together with its ``NAME.int8.onnx``.
    bytecode
        Whether to add compiled modules, which saves their compilation at each cold start. This is
        the default if this interpreter has the target's version, and otherwise impossible.
    interpreter
        Version of Python that the packages are for, if it is not the target's: a server that stands
        in for AWS runs functions with its own interpreter, regardless of their runtime.
    machine
        Architecture that the packages are for, if it is not the target's, for the same reason.
    cache
        Folder that caches wheels.
    compression
        Compression level of zlib.

    Raises
    ------
    BadModelError
        `model` is not a model that workers can load.
    BadInputError
        A package is larger than Lambda allows, or there is no wheel for the target.
    """
    folder.mkdir(parents=True, exist_ok=True)
    python = interpreter or target.python
    compiled = python == own_python() if bytecode is None else bytecode
    wheels = {
        name: fetch(pins(name), machine or target.architecture, python, cache)
        for name in ("worker", "control")
    }
    return {
        name: _write(name, folder, _files(name, wheels.get(name), model), compiled, compression)
        for name in PACKAGES
    }


def _files(name: str, wheels: Path | None, model: Path | None) -> dict[str, Path | bytes]:
    found: dict[str, Path | bytes] = {}
    if wheels is not None:
        found |= dict(_of_wheels(wheels))
    found |= dict(modules_of(name))
    if name == "worker":
        found |= _of_model(model)
    elif name == "control":
        found[f"{_MODELS}/{DEFAULT_IDENTITY}"] = _identity(model)
        found |= _signature(_source(model))
        calibration = _source(model).with_name(_source(model).name + BESIDE)
        if calibration.is_file():
            found[f"{_MODELS}/{SHIPPED}"] = calibration
    return found


def _of_wheels(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        inside = path.relative_to(folder)
        top = inside.parts[0]
        # METADATA stays, because records name versions, which importlib.metadata reads from it.
        if top == "bin" or (top.endswith(".dist-info") and path.name != "METADATA"):
            continue
        package = top.removesuffix(".libs")
        kept = _ALSO_LEFT_OUT.get(package, ())
        patterns = [p for p in LEFT_OUT.get(package, ()) if p not in kept]
        below = "/".join(inside.parts[1:]) or inside.name
        if top.endswith(".dist-info") or not left_out(below, patterns):
            yield inside.as_posix(), path


def modules_of(name: str) -> Iterator[tuple[str, Path]]:
    """Modules of perseid in a package, as (path in the zip, file)."""
    root = Path(perseid.__file__).parent
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).as_posix()
        if name == "tools":
            wanted = _matches(inside, _TOOLS)
        elif name == "control":
            wanted = not left_out(inside, _CONTROL_LEFT_OUT)
        else:
            wanted = _matches(inside, _WORKER_HANDLERS) or not left_out(inside, LEFT_OUT["perseid"])
        if wanted:
            yield f"perseid/{inside}", path


def _matches(inside: str, patterns: tuple[str, ...]) -> bool:
    return any(inside.startswith(p[:-1]) if p.endswith("/*") else inside == p for p in patterns)


def _of_model(model: Path | None) -> dict[str, Path]:
    """Files of the model in the package: the default float32 and int8 models, or the user's model
    instead."""
    source = _source(model)
    if not source.is_file():
        raise BadInputError(
            f"the model {source} is not there: give the path of an exported .onnx file"
        )
    if model is not None:  # otherwise every rank would fail with this error
        ModelRuntime.load(source, threads=1, signature=signature_beside(source))
    found = dict(_inside(source, "default.onnx")) | _signature(source)
    if (small := _int8(source)) is not None:
        found |= dict(_inside(small, "default.int8.onnx"))
    return found


def _signature(source: Path) -> dict[str, Path]:
    """The signature file beside a model, if there is one."""
    beside = source.with_name(source.name + SIGNATURE_BESIDE)
    return {f"{_MODELS}/default.onnx{SIGNATURE_BESIDE}": beside} if beside.is_file() else {}


def _inside(model: Path, name: str) -> Iterator[tuple[str, Path]]:
    """A model's files under a new name; its external data keeps the names that the graph uses."""
    files = local_files(model)
    yield f"{_MODELS}/{name}", files.path
    for path in files.external:
        yield f"{_MODELS}/{path.relative_to(files.path.parent).as_posix()}", path


def _source(model: Path | None) -> Path:
    spec = importlib.util.find_spec("perseid.model")
    assert spec is not None
    assert spec.origin is not None
    return model or Path(spec.origin).parent / "data" / "default.onnx"


def _int8(source: Path) -> Path | None:
    small = source.with_name(f"{source.stem}.int8.onnx")
    return small if small.is_file() else None


def _identity(model: Path | None) -> bytes:
    """The identity of the workers' model, for the control functions, which do not contain the
    model."""
    source = _source(model)
    return json.dumps(shipped_identity(source, _int8(source)).to_json(), indent=1).encode()


def _write(
    name: str, folder: Path, files: Mapping[str, Path | bytes], compiled: bool, compression: int
) -> Package:
    # A digest of names and contents, not of the zip: deflate's output may differ between machines.
    digest = hashlib.sha256(f"{name} bytecode={compiled}".encode())
    for inside, source in sorted(files.items()):
        data = _content(source)
        digest.update(f"\0{inside}\0{len(data)}\0".encode() + data)
    path = folder / f"{name}-{digest.hexdigest()[:20]}.zip"
    if not path.is_file():
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            _write_zip(fresh, files, compiled, compression)
            # Renamed when complete, so that no other process uploads half a zip.
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    for old in set(folder.glob(f"{name}-*.zip")) - {path}:
        old.unlink(missing_ok=True)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info.file_size for info in archive.infolist()}
    package = Package(name, path, digest.hexdigest(), dict(sorted(entries.items())))
    _check_size(package)
    return package


def _content(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    data = source.read_bytes()
    return drop_symbols(data) if ".so" in source.name else data


def _write_zip(
    path: Path, files: Mapping[str, Path | bytes], compiled: bool, compression: int
) -> None:
    with zipfile.ZipFile(path, "w") as archive, tempfile.TemporaryDirectory() as temporary:
        for inside, source in sorted(files.items()):
            _add(archive, inside, _content(source), compression)
            if compiled and inside.endswith(".py") and isinstance(source, Path):
                # Not part of the digest, because the compiler's output may differ in irrelevant
                # ways.
                code = _compile(inside, source, Path(temporary) / "code.pyc")
                if code is not None:
                    _add(archive, _cached(inside), code, compression)


def _add(archive: zipfile.ZipFile, inside: str, data: bytes, compression: int) -> None:
    # One fixed date: the same input gives the same bytes, and an unchanged package is not uploaded.
    info = zipfile.ZipInfo(inside, _EPOCH)
    # Lambda runs functions as another user, who must be able to read the files.
    info.external_attr = 0o100644 << 16
    info.create_system = 3
    archive.writestr(info, data, zipfile.ZIP_DEFLATED, compression)


def _compile(inside: str, source: Path, out: Path) -> bytes | None:
    """Compiled modules that are never checked against their source, so that the zip stays the
    same."""
    try:
        py_compile.compile(
            str(source), str(out), f"/var/task/{inside}", doraise=True, quiet=2,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )  # fmt: skip
    except py_compile.PyCompileError:  # a template, or a file for another version of Python
        return None
    return out.read_bytes()


def _cached(inside: str) -> str:
    path = Path(importlib.util.cache_from_source(inside))
    return path.as_posix()


def _check_size(package: Package) -> None:
    if package.unzipped > UNZIPPED_LIMIT:
        raise BadInputError(
            f"the {package.name} package is {package.unzipped / MIB:.0f} MiB unzipped, but Lambda "
            f"takes {UNZIPPED_LIMIT // MIB} MiB: put the model into the bucket instead and name it "
            "by `model` in the request"
        )
