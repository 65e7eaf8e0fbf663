"""The `hccl` backend of torch.distributed: groups of emulated devices, whose values gloo carries between the processes' CPUs.

Source of names and forms: HabanaAI/gaudi-pytorch-bridge 1.19.0, `distributed/hccl/__init__.py`, `ProcessGroupHCCL.cpp`. No
modelled time passes: the machine model has no network of cards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from gaudicc.emulator.emulation import Emulation
from gaudicc.emulator.ledger import Kind
from gaudicc.emulator.tensor import DEVICE, HpuTensor, raw_of
from gaudicc.targets import op_name
from gaudicc.targets.calls import OpCall, map_values

BACKEND = "hccl"
_NAMESPACES = ("c10d", "_c10d_functional")


def register() -> None:
    """Make the backend known to torch.distributed, where this torch has it."""
    distributed: Any = torch.distributed
    if distributed.is_available():
        distributed.Backend.register_backend(BACKEND, _group, devices=[DEVICE, "cpu"], extended_api=True)


def _group(options: Any, _: Any) -> Any:
    distributed: Any = torch.distributed
    return distributed.ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)


def _serve_cpu(group: torch.ScriptObject) -> None:
    """A group that was asked for as `hpu:hccl` has no backend for the CPU, where the values are."""
    distributed: Any = torch.distributed
    found = distributed.ProcessGroup.unbox(group)
    cpu = torch.device("cpu")
    if cpu not in found._device_types:
        found._register_backend(
            cpu, distributed.ProcessGroup.BackendType.CUSTOM, found._get_backend(torch.device(DEVICE))
        )


def is_collective(op: OpOverload) -> bool:
    """Whether an op speaks to other processes."""
    return op.namespace in _NAMESPACES


def collect(emulation: Emulation, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one, after all that was gathered.

    Raises:
        RuntimeError: an HPU graph is being captured; on the device lazy collectives may be recorded.
    """
    name = op_name(op)
    if emulation.capture is not None:
        raise RuntimeError(f"{name} is not supported during HPU Graph capturing")
    emulation.flush()
    given = OpCall(op, args, kwargs)
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            _serve_cpu(arg)
    emulation.ledger.add(Kind.COLLECTIVE, name, sum(tensor.nbytes for tensor in given.tensors()))
    own = {id(tensor.raw): tensor for tensor in given.tensors() if isinstance(tensor, HpuTensor)}
    result = given.map(raw_of).run()

    def wrap(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        return own[id(leaf)] if id(leaf) in own else HpuTensor(leaf)

    return map_values(result, wrap)
