"""The state of a training on disk: written completely or not at all, and read without running
code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from perseid.errors import BadInputError
from perseid.plaintext import option

CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint in the output folder."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the folder's checkpoint atomically: a crash leaves either the old or the new one."""
    fresh = folder / (CHECKPOINT + ".new")
    with open(fresh, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / CHECKPOINT)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint; None if there is none. Raises `BadInputError` if it is broken."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError) as error:
        first = (str(error).strip().splitlines() or [repr(error)])[0]
        raise BadInputError(
            f"the checkpoint {path} cannot be read ({first}): train without "
            f"{option('resume', True)}"
        ) from error
    return state


def check_same(state: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raise `BadInputError` if a checkpoint belongs to another training than `wanted` describes."""
    for key, value in wanted.items():
        if state.get(key) != value:
            raise BadInputError(
                f"the checkpoint in {folder} belongs to a training with {key} {state.get(key)!r}, "
                f"not {value!r}: resume with the same options and survey, or choose another folder"
            )
