"""Which nodes of a graph `hpu_backend` puts into clusters, each one recipe, and which it leaves to eager mode.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `dynamo/compile_backend/shared_layer.py`, `passes.py`; the tables say which op
goes where. The vendor asks its closed library about most ops; here "registered, but no source speaks of it" counts as yes.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from gaudicc.emulator.emulation import current
from gaudicc.emulator.tensor import DEVICE
from gaudicc.targets import Mode, Support
from gaudicc.targets.calls import OpCall, judge_call, tensors_in

FALLBACK_OPS = {
    "seed", "manual_seed", "initial_seed", "set_rng_state", "get_rng_state", "slice_backward", "addcmul", "index", "nonzero",
    "_unique2", "bincount",
}  # fmt: skip
"""Ops that are always left to eager mode; a program may change the set."""

ALWAYS_CLUSTERED = frozenset(
    ("_to_copy", "alias", "as_strided", "as_strided_scatter", "clamp", "copy", "full", "slice_scatter", "select_scatter",
     "_native_batch_norm_legit_functional")
)  # fmt: skip
"""Ops about which the vendor's library is not asked, whatever their dtypes."""

RANDOM = {
    "rand": "habana_rand", "rand_like": "habana_rand", "randn": "habana_randn", "randn_like": "habana_randn",
    "randint": "habana_randint", "randint_like": "habana_randint", "bernoulli": "habana_bernoulli",
    "poisson": "habana_poisson", "multinomial": "habana_multinomial", "randperm": "habana_randperm",
    "native_dropout": "habana_native_dropout", "uniform": "habana_uniform",
}  # fmt: skip
"""Random ops get another name, with the seed as an input."""


def needs_eager(node: fx.Node) -> bool:
    """Whether a node stays outside the clusters; an item of a tuple goes where the op is that made it."""
    node = made_by(node)
    if not isinstance(node.target, OpOverload) or not on_device(node):
        return True
    name = op_base(node)
    if name == "index" and _plain_index(node):
        return False
    if name in FALLBACK_OPS:
        return True
    if name in ALWAYS_CLUSTERED:
        return False
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta.get("val"))
    call = OpCall(node.target, args, kwargs)
    if any(tensor.device.type != DEVICE and tensor.dim() > 0 for tensor in call.tensors()):
        return True
    if name in RANDOM or node.target.is_view or node.target.namespace == "hpu":
        return False
    support = judge_call(current().judge.target, call, Mode.COMPILE).support
    return support not in (Support.EVIDENCED, Support.PRESUMED)


def made_by(node: fx.Node) -> fx.Node:
    """The node itself; of an item of a tuple, the node that made the tuple."""
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _plain_index(node: fx.Node) -> bool:
    """Whether an index becomes `hpu::plain_index`: only numbers, all on the device, of fixed sizes."""
    values = [each.meta["val"] if isinstance(each, fx.Node) else None for each in node.args[1]]  # type: ignore[union-attr]
    return all(
        isinstance(value, torch.Tensor)
        and value.device.type == DEVICE
        and value.dtype is not torch.bool
        and not any(isinstance(size, torch.SymInt) for size in value.shape)
        for value in values
    )


def on_device(node: fx.Node) -> bool:
    """Whether a node gives tensors on the device, and nothing else."""
    tensors = list(tensors_in(node.meta.get("val")))
    return bool(tensors) and all(tensor.device.type == DEVICE for tensor in tensors)


def op_base(node: fx.Node) -> str:
    """The name of a node's op without namespace and overload."""
    target = node.target
    return (
        target._schema.name.split("::")[1]
        if isinstance(target, OpOverload)
        else getattr(target, "__name__", str(target))
    )


class _InCluster(OperatorSupportBase):
    def __init__(self, eager: set[fx.Node]) -> None:
        self.eager = eager

    def is_node_supported(self, submodules: Any, node: fx.Node) -> bool:
        return node.op == "call_function" and node not in self.eager


def partition(graph: fx.GraphModule, eager: set[fx.Node]) -> fx.GraphModule:
    """The graph with each cluster in a submodule named `fused_N`.

    Args:
        graph: functional ATen on fake tensors.
        eager: nodes that stay outside.
    """
    partitioner = CapabilityBasedPartitioner(
        graph, _InCluster(eager), allows_single_node_partition=True, non_compute_ops=[]
    )
    clusters = partitioner.propose_partitions()
    output = graph.graph.output_node()
    order = {node: at for at, node in enumerate(graph.graph.nodes)}
    # torch before 2.13 cannot fuse nodes whose results nobody reads, such as writes to inputs: the output reads them meanwhile.
    written = [max(cluster.nodes, key=order.__getitem__) for cluster in clusters if not _is_read(cluster.nodes)]
    output.args = ((output.args[0], tuple(written)),)
    fused = partitioner.fuse_partitions(clusters)
    output = fused.graph.output_node()
    kept: Any = output.args[0]
    output.args = (kept[0],)
    return fused


def _is_read(nodes: Collection[fx.Node]) -> bool:
    """Whether any node outside reads what one of these gives."""
    return any(user not in nodes for node in nodes for user in node.users)


def jit_ir(graph: fx.GraphModule) -> str:
    """A cluster as the vendor's log shows it: one `ns::op(` per node."""
    lines = ["####PyTorch-generated JIT IR", f"graph({', '.join(f'%{node.name}' for node in _inputs(graph))}):"]
    for node in graph.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            name = op_base(node)
            vendors = "plain_index" if name == "index" else RANDOM.get(name)
            inputs = ", ".join(f"%{each.name}" for each in node.all_input_nodes)
            space, name = (node.target.namespace, name) if vendors is None else ("hpu", vendors)
            lines.append(f"  %{node.name} : Tensor = {space}::{name}({inputs})")
    outputs = ", ".join(f"%{each.name}" for each in graph.graph.output_node().all_input_nodes)
    return "\n".join([*lines, f"  return ({outputs})"])


def _inputs(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def decompositions() -> dict[Any, Any]:
    """Upstream's decompositions of the ops that the tables list as decomposed before placement."""
    from gaudicc.targets.model import Compile
    from gaudicc.targets.target import op_name

    rows = current().judge.target.rows
    table: dict[Any, Any] = torch._decomp.decomposition_table
    return {
        op: rule
        for op, rule in table.items()
        if isinstance(op, OpOverload)
        and (row := rows.get(op_name(op))) is not None
        and row.compile is Compile.DECOMPOSED
    }
