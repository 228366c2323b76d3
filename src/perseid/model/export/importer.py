"""Import weights from a published checkpoint, without torch and without running any of its code.

Two kinds of files are read: a whole pickled module (``torch.save(DataParallel(model))``, classes
and all) and a plain ``state_dict``. The pickle is read as inert data (`perseid.survey.torchfile`);
its classes need not exist here. Every name, shape and setting is compared with the published
network; differences are reported, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perseid.errors import BadModelError, BadPartitionError
from perseid.model.config import PUBLISHED, AstroMAEConfig
from perseid.model.export.fold import BN_EPS, LN_EPS
from perseid.model.weights import Weights, misfits
from perseid.survey.safe_pickle import Placeholder
from perseid.survey.torchfile import LazyTensor, load_torch

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts store the weights beside other things."""
_SHOWN = 12


@dataclass(frozen=True)
class Imported:
    """Weights and classes found in a checkpoint."""

    weights: Weights
    kind: str
    """Kind of checkpoint: ``module`` (a whole pickled module) or ``state_dict``."""
    classes: tuple[str, ...]
    """Classes that the pickle names; none of them was looked up or run."""


def import_checkpoint(file: str | Path, config: AstroMAEConfig = PUBLISHED) -> Imported:
    """Import the weights of a checkpoint, given by path or URL.

    Raises
    ------
    BadModelError
        The file is not a checkpoint, or a name, shape or setting differs from `config`; the message
        lists the differences.
    NotFoundError, StorageError
        The checkpoint cannot be read.
    """
    try:
        root = _unwrapped(load_torch(str(file), unknown="placeholder"), file)
        module = isinstance(root, Placeholder)
        settings = list(_setting_misfits(root, config)) if module else []
        tensors = dict(_module_tensors(root) if module else _state_tensors(root))
        names = _without_prefix(tensors)
        found = {name: tensor.shape for name, tensor in names.items()}
        _report(file, settings + misfits(config, found))
        arrays = {name: _float32(name, tensor) for name, tensor in names.items()}
    except BadPartitionError as error:
        raise BadModelError(f"no weights can be read from {file}: {error}") from error
    classes = tuple(sorted(set(_classes(root)))) if module else ()
    return Imported(Weights(config, arrays), "module" if module else "state_dict", classes)


def _unwrapped(root: Any, file: str | Path) -> Any:
    """The module or mapping of tensors inside the object that a training script saved."""
    for _ in range(3):
        if isinstance(root, Placeholder) and isinstance(root.state, Mapping):
            if "_modules" in root.state:
                return root
        elif isinstance(root, Mapping):
            inner = next((root[key] for key in WRAPPERS if key in root), None)
            if inner is None:
                if any(isinstance(value, LazyTensor) for value in root.values()):
                    return root
                break
            root = inner
    raise BadModelError(
        f"{file} holds a {_kind(root)}, neither a module nor a dictionary of tensors: save the "
        "model or its state_dict() with torch.save"
    )


def _kind(value: Any) -> str:
    return str(value.kind) if isinstance(value, Placeholder) else type(value).__name__


def _modules(root: Placeholder, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every module of the tree by its dotted name; the root's name is empty."""
    if depth > 32:
        raise BadModelError("modules are nested more than 32 deep: no network of this kind")
    yield prefix, root
    for name, child in _dict(root, "_modules").items():
        if isinstance(child, Placeholder):
            yield from _modules(child, f"{prefix}{name}.", depth + 1)


def _module_tensors(root: Placeholder) -> Iterator[tuple[str, LazyTensor]]:
    for prefix, module in _modules(root):
        for table in ("_parameters", "_buffers"):
            for name, value in _dict(module, table).items():
                tensor = _tensor(value)
                if tensor is not None:
                    yield f"{prefix}{name}", tensor


def _state_tensors(root: Mapping[Any, Any]) -> Iterator[tuple[str, LazyTensor]]:
    for name, value in root.items():
        tensor = _tensor(value)
        if tensor is None:
            raise BadModelError(f"{name} in the checkpoint is a {_kind(value)}, not a tensor")
        yield str(name), tensor


def _tensor(value: Any) -> LazyTensor | None:
    """The tensor of a value, which may be a parameter with further state around it."""
    if isinstance(value, Placeholder) and value.args:
        value = value.args[0]
    return value if isinstance(value, LazyTensor) else None


def _dict(module: Placeholder, key: str) -> Mapping[Any, Any]:
    value = module.state.get(key) if isinstance(module.state, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _without_prefix(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Names without DataParallel's prefix ``module.``, and without BatchNorm's counters."""
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }


def _float32(name: str, tensor: LazyTensor) -> NDArray[np.float32]:
    array = tensor.numpy()
    if array.dtype.kind != "f":
        raise BadModelError(f"{name} is {array.dtype}, not floating point")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise BadModelError(f"{name} holds numbers that are not finite")
    return array


def _setting_misfits(root: Placeholder, config: AstroMAEConfig) -> Iterator[str]:
    """Settings that cannot be seen from shapes and that differ, if the pickle records them."""
    for prefix, module in _modules(root):
        name = prefix.rstrip(".").removeprefix("module.")
        kind, leaf = module.kind.name, name.rpartition(".")[2]
        state = module.state if isinstance(module.state, Mapping) else {}
        expected: dict[str, Any] = {}
        if kind == "LayerNorm":
            expected = {"eps": LN_EPS}
        elif kind.startswith("BatchNorm"):
            expected = {"eps": BN_EPS}
        elif leaf == "attn":
            expected = {"num_heads": config.heads}
        elif leaf == "act":
            yield from _activation(name, kind, "GELU")
            expected = {"approximate": "none"}
        elif name.endswith("PCM.2"):
            yield from _activation(name, kind, "SiLU")
        elif ".PCM." in name and kind == "Conv2d":
            expected = {"groups": config.pcm_groups}
        for key, value in expected.items():
            if key in state and state[key] != value:
                yield f"{name}.{key} is {state[key]!r}, not {value!r}"


def _activation(name: str, kind: str, wanted: str) -> Iterator[str]:
    if kind != wanted:
        yield f"{name} is {kind}, not {wanted}"


def _classes(root: Placeholder) -> Iterator[str]:
    for _, module in _modules(root):
        yield str(module.kind)


def _report(file: str | Path, problems: list[str]) -> None:
    if problems:
        rest = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise BadModelError(
            f"{file} is not the published AstroMAE network: {'; '.join(problems[:_SHOWN])}{rest}"
        )
