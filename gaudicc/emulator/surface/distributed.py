"""`habana_frameworks.torch.distributed.hccl`: the place of a process among others; `collectives.py` has the groups.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `distributed/hccl/__init__.py`.
"""

from __future__ import annotations

import os

__all__ = ["initialize_distributed_hpu"]

_NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
_MPI = {f"OMPI_COMM_WORLD_{end}": name for end, name in zip(("SIZE", "RANK", "LOCAL_RANK"), _NAMES, strict=True)}


def initialize_distributed_hpu(
    world_size: int | None = None, rank: int | None = None, local_rank: int | None = None
) -> tuple[int, int, int]:
    """Which process this is.

    Args:
        world_size: how many processes there are; these three count if all are given, and are put into the environment.
        rank: the number of this one.
        local_rank: its number on this machine.

    Returns:
        World size, rank and local rank: of `WORLD_SIZE`, `RANK`, `LOCAL_RANK` or, without them, of Open MPI's variables;
        1, -1 and -1 for a process that nothing launched.
    """
    given = (world_size, rank, local_rank)
    if all(value is not None for value in given):
        os.environ.update({name: str(value) for name, value in zip(_NAMES, given, strict=True)})
    else:
        if not all(name in os.environ for name in _NAMES) and all(name in os.environ for name in _MPI):
            os.environ.update({name: os.environ[source] for source, name in _MPI.items()})
        os.environ.setdefault("MASTER_ADDR", "localhost")
        os.environ.setdefault("MASTER_PORT", "12345")
    return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", -1)), int(os.environ.get("LOCAL_RANK", -1))
