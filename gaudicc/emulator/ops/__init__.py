"""The `hpu::` ops of inference with CPU references, registered when the emulated device starts.

Schemas are those of HabanaAI/gaudi-pytorch-bridge 1.19.0, `habana_eager/eager_custom_op_register.cpp` and
`scripts/hpu_op.yaml`; what the ops compute follows the reference formulas of its tests. Each file has a table `OPS`:
schema -> reference. Numbers are a CPU's: Gaudi's kernels round and sum in other orders.
"""

from __future__ import annotations

from torch.library import Library

from gaudicc.emulator.ops import attention, cache, fp8, mixture, norms, quantized

_LIBRARIES: list[Library] = []

OPS = {
    schema: reference
    for table in (attention.OPS, cache.OPS, fp8.OPS, mixture.OPS, norms.OPS, quantized.OPS)
    for schema, reference in table.items()
}


def register() -> None:
    """Define the ops."""
    library = Library("hpu", "FRAGMENT")
    for schema, reference in OPS.items():
        name = schema.split("(", 1)[0]
        library.define(schema)
        library.impl(name, reference, "CompositeExplicitAutograd")
    _LIBRARIES.append(library)
