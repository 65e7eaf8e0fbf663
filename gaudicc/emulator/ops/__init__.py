"""The `hpu::` ops of inference with CPU references, registered when the emulated device starts.

Schemas are those of HabanaAI/gaudi-pytorch-bridge 1.19.0, `habana_eager/eager_custom_op_register.cpp` and
`scripts/hpu_op.yaml`; what the ops compute follows the reference formulas of its tests. Each file has a table `OPS`:
schema -> reference. Numbers are a CPU's: Gaudi's kernels round and sum in other orders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import _OpNamespace
from torch.library import Library

from gaudicc.emulator.emulation import current
from gaudicc.emulator.ops import attention, cache, fp8, fp8_attention, mixture, norms, quantized
from gaudicc.targets.target import RELEASE

_LIBRARIES: list[Library] = []

OPS = {
    schema: reference
    for table in (attention.OPS, cache.OPS, fp8.OPS, fp8_attention.OPS, mixture.OPS, norms.OPS, quantized.OPS)
    for schema, reference in table.items()
}


class _Namespace(_OpNamespace):
    """`torch.ops.hpu`: says of an op that is not there whether a Gaudi has it."""

    def __getattr__(self, op_name: str) -> Any:
        try:
            return super().__getattr__(op_name)
        except AttributeError as error:
            if op_name.startswith("__"):
                raise
            target = current().judge.target
            known = any(row.partition(".")[0] == f"hpu::{op_name}" for row in target.rows)
            why = "it serves training or the bridge itself" if known else f"release {RELEASE} has no such op"
            raise AttributeError(f"torch.ops.hpu.{op_name} is not emulated: {why}", name=op_name) from error


def register() -> None:
    """Define the ops."""
    library = Library("hpu", "FRAGMENT")
    for schema, reference in OPS.items():
        name = schema.split("(", 1)[0]
        library.define(schema)
        library.impl(name, reference, "CompositeExplicitAutograd")
    _LIBRARIES.append(library)
    torch.ops.hpu.__class__ = _Namespace
