"""Second step of recording on a Gaudi: a flat graph gets the device's kernels, and is checked before any capture begins.

A fallback inside a capture ends the process on a device, and a value that is read freezes there. So every rule is
checked here, on shapes and dtypes alone, and what breaks one is named with the user's line.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx

from gaudicc.errors import LoweringError
from gaudicc.nodes import where
from gaudicc.runtime import hpu_kernels
from gaudicc.runtime.cpu_flatten import Flat, propagate
from gaudicc.runtime.hpu_kernels import Kernel
from gaudicc.runtime.hpu_pieces import describe, wiring
from gaudicc.targets import Mode, Support, Target
from gaudicc.targets.calls import OpCall, judge_call, reads_host, tensors_in
from gaudicc.targets.fused import fused_op

HPU = "hpu"  # as text: a torch.device made before the software is loaded names another backend
COLLECTIVES = "PT_HPU_ENABLE_LAZY_COLLECTIVES"
_aten = torch.ops.aten
_INT32 = torch.iinfo(torch.int32)
_TAKES_NUMBERS = ("number", "Optional[number]", "Tensor")  # capture leaves `x * 2` a call of `mul.Tensor`
# Ops that cast a float to the integers of their first operand; NaN and infinities are no integer anywhere.
_KEEP_INTEGERS = (
    _aten.fill.Scalar, _aten.full_like.default, _aten.new_full.default, _aten.full.default, _aten.masked_fill.Scalar,
    _aten.index_fill.int_Scalar, _aten.scatter.value, _aten.constant_pad_nd.default,
)  # fmt: skip
_COMPLEX_OR_WIDE = (torch.float64, torch.complex32, torch.complex64, torch.complex128)


class Preparer:
    """Makes flat graphs ready for one chip in one execution mode.

    Args:
        target: the chip.
        mode: lazy or compile.
    """

    def __init__(self, target: Target, mode: Mode) -> None:
        self.target, self.mode = target, mode
        self._judged: dict[Hashable, tuple[str, ...]] = {}
        self._traced: dict[Hashable, fx.GraphModule] = {}
        self._plain = dict(hpu_kernels.PLAIN)
        self._replaced = dict(hpu_kernels.FUSED)
        if mode is Mode.COMPILE:
            self._replaced |= hpu_kernels.COMPILE_KERNELS
            self._plain |= hpu_kernels.COMPILE_PLAIN
        self._kernels = {kernel.run: kernel for kernel in self._replaced.values()}

    def prepare(self, flat: Flat) -> None:
        """Puts kernels in place of semantic ops and moves factories to the device."""
        for node in list(flat.graph.nodes):
            if node.op == "call_function":
                self._replace(flat.graph, node)
        for node in flat.graph.nodes:
            if isinstance(node.target, OpOverload):
                _to_device(node)
            if node.target is _aten.view.default:
                node.target = _aten.reshape.default  # strides on the device need not be those of the CPU
        flat.graph.eliminate_dead_code()

    def check(self, graph: fx.Graph) -> None:
        """Checks all rules on one graph.

        Raises:
            LoweringError: the first node that cannot be recorded; says how many there are.
        """
        found = [(node, reason) for node in graph.nodes for reason in self._violations(node)]
        if found:
            node, reason = found[0]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise LoweringError(
                f"{reason}{more}",
                where=where(node, f"the check before recording on {self.target.name}, {self.mode.value} mode"),
                hint="compile for the chip that runs it, or pass on_unsupported='host' to leave such ops on the host",
            )

    def _replace(self, graph: fx.Graph, node: fx.Node) -> None:
        args: Any = fx.map_arg(node.args, lambda arg: arg.meta["val"])
        kernel = self._replaced.get(node.target)
        if kernel is not None and hpu_kernels.fits(node.target, args) and self._has(node):
            node.target = kernel.run
        elif node.target in self._plain:
            _expand(graph, node, self._plain_calls(node))

    def _plain_calls(self, node: fx.Node) -> fx.GraphModule:
        """The ATen calls that an op becomes, traced once for all nodes of one form: layers and slices repeat."""
        operands = node.all_input_nodes
        numbers = {operand: i for i, operand in enumerate(operands)}
        metas = [operand.meta["val"] for operand in operands]
        key = (node.target, wiring((node.args, node.kwargs), numbers), describe(metas))
        if key not in self._traced:
            function = self._plain[node.target]

            def flat(*tensors: torch.Tensor) -> Any:
                known = dict(zip(operands, tensors, strict=True))
                args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                return function(*args, **kwargs)

            self._traced[key] = make_fx(flat)(*metas)
        return self._traced[key]

    def _has(self, node: fx.Node) -> bool:
        """Whether the chip has the fused kernel of a semantic op."""
        dtypes = {tensor.dtype for tensor in tensors_in([arg.meta["val"] for arg in node.all_input_nodes])}
        found = fused_op(self.target, node.target, self.mode, dtypes=dtypes)
        return found is None or found[1].support is not Support.NO

    def _violations(self, node: fx.Node) -> Iterator[str]:
        for tensor in tensors_in(node.meta.get("val")):
            if tensor.dtype in _COMPLEX_OR_WIDE:
                yield f"{node.name} is {_text(tensor.dtype)}: a Gaudi " + (
                    "would compute it in float32" if tensor.dtype is torch.float64 else "holds no complex numbers"
                )
        if node.op != "call_function":
            return
        if node.target in self._kernels:
            yield from self._judge_kernel(node, self._kernels[node.target])
        elif isinstance(node.target, OpOverload):
            yield from self._judge(node, node.target)

    def _judge_kernel(self, node: fx.Node, kernel: Kernel) -> Iterator[str]:
        dtypes = [tensor.dtype for tensor in tensors_in([arg.meta["val"] for arg in node.all_input_nodes])][:1]
        for name in kernel.uses:
            verdict = self.target.lookup(name, dtypes, self.mode)
            if verdict.support is Support.NO:
                yield verdict.reason

    def _judge(self, node: fx.Node, op: OpOverload) -> Iterator[str]:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
        key = (op, describe(args), describe(tuple(kwargs.items())))
        if key not in self._judged:
            self._judged[key] = tuple(self._verdict(OpCall(op, args, kwargs)))
        yield from self._judged[key]

    def _verdict(self, call: OpCall) -> Iterator[str]:
        op = call.op
        if "c10d" in op.namespace and self.mode is Mode.LAZY and os.environ.get(COLLECTIVES, "") not in ("1", "true"):
            yield f"{op} in a recorded graph needs {COLLECTIVES}=true"
            return
        if op is _aten.as_strided.default:
            yield f"{op} depends on strides, which the device does not keep as the CPU does"
            return
        verdict = judge_call(self.target, call, self.mode)
        if verdict.dynamic:
            yield f"the size of {op}'s result depends on data, which would split and freeze the recorded graph"
        elif verdict.support in (Support.NO, Support.REPORTED_BAD):
            yield verdict.reason
        if self.mode is Mode.LAZY:
            yield from _wide_numbers(call)


def refuse_host_reads(graph: fx.GraphModule) -> None:
    """Refuses what turns a tensor's values into a Python number: the number would be frozen into the recorded graph.

    Raises:
        LoweringError: a node of the graph, or of a body that it calls, does so.
    """
    for module in (each for each in graph.modules() if isinstance(each, fx.GraphModule)):
        for node in module.graph.nodes:
            if isinstance(node.target, OpOverload) and reads_host(node.target):
                raise LoweringError(
                    f"{node.target} reads a value on the host, which would split and freeze the recorded graph",
                    where=where(node, "the check before recording"),
                    hint="keep the value on the device, or pass on_unsupported='host' to read it between two recordings",
                )


def _wide_numbers(call: OpCall) -> Iterator[str]:
    """Numbers among the operands of int64 tensors that lazy mode would narrow; a float makes most ops compute in floats."""
    named, dtypes = call.named(), call.dtypes()
    keeps = call.op in _KEEP_INTEGERS
    result = named.get("dtype") or next(iter(dtypes), None)
    if torch.int64 not in ((result,) if keeps else dtypes):
        return
    values = [named.get(each.name) for each in call.op._schema.arguments if str(each.type) in _TAKES_NUMBERS]
    for value in values:
        is_number = isinstance(value, int) or (keeps and isinstance(value, float))
        if is_number and not _INT32.min <= value <= _INT32.max:  # type: ignore[operator]
            yield f"{call.op} computes int64 with {value}, which lazy mode narrows to int32"


def _to_device(node: fx.Node) -> None:
    """Factories make their tensors on the device; a copy that names the CPU stays where it is."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    if not any(argument.name == "device" for argument in schema):
        return
    tensors = any("Tensor" in str(argument.type) for argument in schema)
    kwargs = {name: value for name, value in node.kwargs.items() if name not in ("device", "pin_memory")}
    node.kwargs = kwargs if tensors else {**kwargs, "device": HPU}


def _expand(graph: fx.Graph, node: fx.Node, traced: fx.GraphModule) -> None:
    """Puts traced ATen calls in a node's place, at the node's source line."""
    operands = node.all_input_nodes
    places: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), operands, strict=True))
    with graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "call_function":
                places[inner] = copied = graph.node_copy(inner, places.__getitem__)
                copied.meta = {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}
                propagate(copied)
    result: Any = fx.map_arg(traced.graph.output_node().args[0], places.__getitem__)
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
