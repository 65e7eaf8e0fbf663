"""From captured graphs to the machine model: the work of ATen nodes, read from their fake tensors.

This module and `fx_tasks` alone in the room know torch. Shapes must be static: specialise the graph to a bucket first.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import Any, cast

import torch
from torch import fx

from gaudicc.errors import InputError, Where
from gaudicc.machine.attention import AttentionShape
from gaudicc.machine.cost import OpClass, OpWork
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.split import unsplit_works
from gaudicc.machine.workload import Workload

_DTYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8", torch.float8_e5m2: "fp8", torch.int8: "int8", torch.uint8: "int8",
    torch.int16: "int16", torch.int32: "int32", torch.int64: "int64", torch.bool: "bool",
}  # fmt: skip

ATTENTION = "attention"
_ATTENTIONS = (ATTENTION, "sink_attention")
MIXTURE = "moe"
_PRODUCTS = {"linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "convolution"}
# Products whose third operand is added to the result; the MME has no input for it, so it costs a TPC node.
_WITH_BIAS = {"linear": 2, "convolution": 2, "addmm": 0, "baddbmm": 0}
_VIEWS = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "numpy_T", "mT", "expand", "unsqueeze", "squeeze",
    "slice", "select", "detach", "alias", "split", "split_with_sizes", "chunk", "unbind", "as_strided", "flatten",
    "unflatten", "narrow", "lift_fresh", "getitem", "sym_size", "_reshape_alias",
}  # fmt: skip
_CLASSES = {
    OpClass.COPY: {"clone", "copy", "copy_", "cat", "stack", "constant_pad_nd", "contiguous", "slice_scatter",
                   "select_scatter", "repeat", "full", "full_like", "zeros", "zeros_like", "ones", "ones_like",
                   "empty", "empty_like", "arange", "new_zeros", "fill", "flip", "roll"},
    OpClass.TRANSCENDENTAL: {"exp", "exp2", "expm1", "log", "log2", "log1p", "sigmoid", "tanh", "gelu", "silu", "sin",
                             "cos", "tan", "rsqrt", "sqrt", "erf", "pow", "softplus", "elu", "mish", "logaddexp"},
    OpClass.REDUCTION: {"sum", "mean", "amax", "amin", "max", "min", "prod", "var", "var_mean", "std", "any", "all",
                        "argmax", "argmin", "cumsum", "cumprod", "logsumexp", "linalg_vector_norm"},
    OpClass.SOFTMAX: {"softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax", "softmax_tile",
                      "softmax_part"},
    OpClass.NORM: {"native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm", "native_group_norm", "group_norm",
                   "_native_batch_norm_legit_no_training", "batch_norm"},
    OpClass.GATHER: {"embedding", "index_select", "gather", "index", "scatter", "scatter_add", "index_put",
                     "index_copy", "index_add", "take", "masked_select", "_unsafe_index", "embedding_bag"},
    OpClass.SORT: {"sort", "topk", "argsort", "unique", "kthvalue", "msort"},
}  # fmt: skip
_CLASS_OF = {name: op_class for op_class, names in _CLASSES.items() for name in names}


def work_of(node: fx.Node) -> OpWork:
    """The work of one `call_function` node.

    Products go to the MME, views cost nothing, all else is vector work. What needs both engines is counted in parts: a bias
    and attention, see `workload_of`.

    Args:
        node: an ATen node with `meta["val"]`, whose operands have it too.

    Returns:
        The work.

    Raises:
        InputError: a shape is symbolic, a value is missing, or a dtype has no cost.
    """
    name = op_name(node)
    if name in _VIEWS:
        return OpWork(node.name, OpClass.VIEW)
    results, operands = _tensors(node, node.meta.get("val")), _operands(node)
    read, written = sum(map(_bytes, operands)), sum(map(_bytes, results))
    if not results:
        raise _refuse(node, "has no fake tensor in meta['val']")
    dtype = _dtype(node, (operands or results)[0])
    if name in _PRODUCTS:
        gemm, weight = _product(node, name)
        dtype = gemm.dtype
        return OpWork(node.name, OpClass.GEMM, dtype, gemm, read_bytes=read, written_bytes=written, weight_bytes=weight)
    op_class = _CLASS_OF.get(name, OpClass.ELEMENTWISE)
    elements = max(sum(result.numel() for result in results), *(operand.numel() for operand in operands), 0)
    row_bytes = 0
    if op_class is OpClass.GATHER:
        # Only the rows picked are read, and only those written.
        moved = min(sum(result.numel() for result in results), sum(operand.numel() for operand in operands[1:]) or 1)
        moved = max(moved, results[0].numel() if name in ("embedding", "index_select", "index", "gather") else 0)
        elements, read, written = moved, moved * results[0].element_size(), moved * results[0].element_size()
        row_bytes = _row(node, results[0]) * results[0].element_size()
    return OpWork(node.name, op_class, dtype, None, elements, read, written, 0, row_bytes)


def _row(node: fx.Node, result: torch.Tensor) -> int:
    """Entries that a gather reads in one place; of numpy-style indexing what follows the last dim that is indexed."""
    if op_name(node) in ("index", "_unsafe_index"):
        source, indices = _operands(node)[0], cast(Any, node.args[1])
        last = max((dim for dim, index in enumerate(indices) if index is not None), default=-1)
        return prod(source.shape[last + 1 :])
    return result.shape[-1] if result.dim() else 0


def workload_of(nodes: Iterable[fx.Node], repeats: int = 1) -> Workload:
    """The workload of a graph's nodes; a bias is a vector op of its own, attention two products and a softmax.

    Args:
        nodes: of one graph, in order; all but `call_function` nodes are passed over.
        repeats: how often the graph runs, one after the other.

    Returns:
        The workload.
    """
    return Workload.of((op for node in nodes if node.op == "call_function" for op in works_of(node)), repeats)


def attention_shape(node: fx.Node) -> AttentionShape:
    """The shape of a `gaudicc::attention` node of static sizes, with or without sinks.

    What its mask rules out is in `meta["band"]`, (ahead, window), if split-attention has looked.
    """
    tensors = [_tensors(node, arg.meta.get("val")) for arg in node.args[:4] if isinstance(arg, fx.Node)]
    (q,), (k,), (v,), *masks = tensors
    # A mask that all heads share is read once for all of them.
    mask_bytes = sum(mask.element_size() for (mask,) in masks if mask.dim() > 2 and mask.shape[-3] > 1)
    ahead, window = node.meta.get("band", (0 if node.args[4] else None, None))
    return AttentionShape(
        q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], _dtype(node, q),
        ahead=ahead, window=window, mask_bytes=mask_bytes,
    )  # fmt: skip


def works_of(node: fx.Node) -> Iterator[OpWork]:
    """The work of one node in parts: what needs both engines is more than one."""
    if op_name(node) in _ATTENTIONS:
        for op in unsplit_works(attention_shape(node)):
            yield replace(op, name=f"{node.name}_{op.name}")
        return
    if op_name(node) == MIXTURE:
        yield from _mixture(node)
        return
    yield work_of(node)
    position = _WITH_BIAS.get(op_name(node))
    if position is not None and len(node.args) > position and isinstance(node.args[position], fx.Node):
        (result,) = _tensors(node, node.meta["val"])
        moved = _bytes(result)
        yield OpWork(
            f"{node.name}_bias",
            OpClass.ELEMENTWISE,
            _dtype(node, result),
            elements=result.numel(),
            read_bytes=moved,
            written_bytes=moved,
        )


def _mixture(node: fx.Node) -> Iterator[OpWork]:
    """Two products of experts around a gate: the choices are spread evenly, and every expert's weights are read."""
    x, chosen, _, gate_up, down = (_tensors(node, arg.meta["val"])[0] for arg in node.args[:5])  # type: ignore[union-attr]
    dtype, size = _dtype(node, x), x.element_size()
    for name, weights in (("gate_up", gate_up), ("down", down)):
        experts, width, depth = weights.shape
        rows = -(-chosen.numel() // experts)
        gemm = Gemm(rows, width, depth, (experts,) if experts > 1 else (), dtype)
        read, written = size * experts * (rows * depth + depth * width), size * experts * rows * width
        yield OpWork(f"{node.name}_{name}", OpClass.GEMM, dtype, gemm, 0, read, written, _bytes(weights))
        if weights is gate_up:
            gated = written // size
            yield OpWork(f"{node.name}_gate", OpClass.TRANSCENDENTAL, dtype, None, gated, written, written // 2)


def op_name(node: fx.Node) -> str:
    """Name of the op a node calls, without namespace and overload."""
    target: Any = node.target
    if target is operator.getitem:
        return "getitem"
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


def _refuse(node: fx.Node, why: str) -> InputError:
    return InputError(
        f"node {node.name} {why}, so its cost is not known",
        where=Where(op=str(node.target)),
        hint="specialise the graph to a bucket first",
    )


def _tensors(node: fx.Node, value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if not all(isinstance(size, int) for size in (*value.shape, *value.stride())):
            raise _refuse(node, f"has the symbolic shape {tuple(value.shape)}")
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(node, item)]
    return []


def _operands(node: fx.Node) -> list[torch.Tensor]:
    return [tensor for source in node.all_input_nodes for tensor in _tensors(node, source.meta.get("val"))]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _dtype(node: fx.Node, tensor: torch.Tensor) -> str:
    if tensor.dtype not in _DTYPES:
        raise _refuse(node, f"computes in {tensor.dtype}")
    return _DTYPES[tensor.dtype]


def _product(node: fx.Node, name: str) -> tuple[Gemm, int]:
    """(The GEMM of a product, bytes of its operands that come from outside the graph)."""
    positions = (1, 2) if name in ("addmm", "baddbmm") else (0, 1)
    sources = [node.args[position] for position in positions]
    if not all(isinstance(source, fx.Node) for source in sources):
        raise _refuse(node, "multiplies something that is not a tensor")
    left, right = (_tensors(node, source.meta.get("val")) for source in sources if isinstance(source, fx.Node))
    if not left or not right:
        raise _refuse(node, "multiplies a node without fake tensor")
    place = node.meta.get("slice")
    outside = [_is_outside(source, place) for source in sources]
    weight = sum(_bytes(side[0]) for side, is_outside in zip((left, right), outside, strict=True) if is_outside)
    if name == "convolution":
        return _convolution(node, left[0], right[0]), weight
    return _matrix_product(node, name, left[0], right[0]), weight


def _matrix_product(node: fx.Node, name: str, left: torch.Tensor, right: torch.Tensor) -> Gemm:
    if name == "linear":
        right = right.transpose(-1, -2)
    if left.dim() < 2:
        left = left.unsqueeze(0)
    if right.dim() < 2:
        right = right.unsqueeze(1)
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    rows, depth, width = left.shape[-2], left.shape[-1], right.shape[-1]
    if prod(right.shape[:-2]) == 1:
        # One B for all items: the rows of the items follow each other.
        rows, batch = rows * prod(batch), torch.Size()
    # Grouped heads: one B for all items of the innermost batch dimension.
    shared = len(batch) > 1 and batch[-1] > 1 and right.shape[-3] == 1
    items = (batch[-1], prod(batch[:-1])) if shared else (prod(batch),)
    return Gemm(
        rows,
        width,
        depth,
        tuple(size for size in items if size > 1),
        _dtype(node, left),
        trans_a=_is_transposed(left),
        trans_b=_is_transposed(right),
        shared_b=shared,
        flatten=left.is_contiguous(),
    )


def _convolution(node: fx.Node, image: torch.Tensor, filters: torch.Tensor) -> Gemm:
    """A convolution as the GEMM of its unfolded input: one row per output position."""
    (result,) = _tensors(node, node.meta["val"])
    groups = image.shape[1] // filters.shape[1]
    positions = result.shape[0] * prod(result.shape[2:])
    return Gemm(
        positions,
        filters.shape[0] // groups,
        prod(filters.shape[1:]),
        (groups,) if groups > 1 else (),
        _dtype(node, image),
    )


def _is_transposed(tensor: torch.Tensor) -> bool:
    """Stored with the second-last dimension innermost."""
    return tensor.stride(-1) != 1 and tensor.stride(-2) == 1


def _is_outside(source: object, place: int | None) -> bool:
    """Whether an operand comes from HBM: from outside the graph, or for a slice of attention from outside the slice."""
    while isinstance(source, fx.Node) and source.op == "call_function" and op_name(source) in _VIEWS:
        source = source.args[0]
    if not isinstance(source, fx.Node):
        return False
    return source.op in ("placeholder", "get_attr") or (place is not None and source.meta.get("slice") != place)
