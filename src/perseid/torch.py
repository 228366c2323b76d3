"""``import perseid.torch``: backend ``perseid`` of ``torch.distributed``.

Ranks need no open ports and may be behind NATs; where one is lost, all others raise
``PeerLostError`` with its number. docs/how-to/torch.md tells the rest.

Examples
--------
>>> import torch.distributed as dist
>>> import perseid.torch
>>> dist.init_process_group("perseid", store=dist.HashStore(), rank=0, world_size=1)
>>> dist.destroy_process_group()
"""

from __future__ import annotations

from typing import Any

from perseid.libraries import library_error

try:
    import torch.distributed as dist
except ImportError as error:
    raise library_error(
        error, "perseid.torch needs PyTorch: pip install 'perseid[torch]'"
    ) from error

from perseid.compat.torch.join import create, leave, rendezvous_of_environment
from perseid.compat.torch.process_group import ProcessGroupPerseid


def register() -> None:
    """Make the backend known to torch; importing this module does it."""
    if "PERSEID" not in dist.Backend._plugins:
        torch_api: Any = dist
        torch_api.Backend.register_backend("perseid", create, extended_api=True, devices=["cpu"])
        torch_api.register_rendezvous_handler("perseid", rendezvous_of_environment)


register()

__all__ = ["ProcessGroupPerseid", "leave", "register"]
