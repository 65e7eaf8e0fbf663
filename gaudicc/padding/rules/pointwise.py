"""Pointwise ops: nothing is demanded; what the pads hold follows from the op."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Content, Dim, Factor, Kind, Pads, constant, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.contents import evaluate, result_of
from gaudicc.padding.rules.rule import Rule, operand, overload, wrap
from gaudicc.padding.sizes import expression
from gaudicc.rules.match import argument

_EXTRA = (
    aten._to_copy.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other,
    aten.type_as.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
    aten.lift_fresh_copy.default, aten.dropout.default, aten.log_sigmoid.default, aten.gelu.default,
    aten.mish.default, aten.hardswish.default, aten.masked_fill.Scalar, aten.masked_fill.Tensor,
    aten.logical_not.default, aten.polar.default, aten.complex.default,
    aten.relu6.default, aten.selu.default, aten.celu.default, aten.addcmul.default, aten.softplus.default,
    aten.hardsigmoid.default, aten.hardtanh.default, aten.isnan.default, aten.isinf.default, aten.copy.default,
    aten.floor_divide.default, aten.floor_divide.Scalar, aten.rsub.Tensor,
)  # fmt: skip
_DIVISIONS = ("div", "floor_divide", "remainder", "fmod")
_TENSOR_FORM = {
    aten.pow.Tensor_Scalar: aten.pow.Tensor_Tensor, aten.pow.Scalar: aten.pow.Tensor_Tensor,
    aten.where.ScalarOther: aten.where.self, aten.where.ScalarSelf: aten.where.self, aten.where.Scalar: aten.where.self,
    aten.masked_fill.Scalar: aten.masked_fill.Tensor, aten.div.Scalar_mode: aten.div.Tensor_mode,
    aten.clamp.default: aten.clamp.Tensor, aten.clamp_max.default: aten.clamp_max.Tensor,
    aten.clamp_min.default: aten.clamp_min.Tensor,
}  # fmt: skip


def pointwise(op: Any) -> bool:
    """Whether an op works element by element, on broadcast operands."""
    if op in _EXTRA:
        return True
    return torch.Tag.pointwise in op.tags and op.namespace == "aten" and not op._schema.is_mutable


def pointwise_claims(p: Padder, node: fx.Node) -> Claims:
    """Aligns the operands' layouts, reads sizes as values, and derives what the pads hold."""
    _read_lengths(p, node)
    _divide_by_no_zero(p, node)
    result = val(node)
    if not isinstance(result, torch.Tensor):
        raise p.refuse("several results of a pointwise op")
    layouts = _align(p, node, result)
    dims = tuple(
        normal(_content(p, node, layout, i - result.dim(), result.dtype), result.dtype)
        for i, layout in enumerate(layouts)
    )
    return Pads(dims, _uniform(p, node), _iota(p, node))


def _read_lengths(p: Padder, node: fx.Node) -> None:
    sizes = [arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, fx.Node) and not _is_tensor(arg)]
    if not sizes:
        return
    op = overload(node)
    tensor_form = _TENSOR_FORM.get(op)
    if tensor_form is None and op._overloadname == "Scalar":
        tensor_form = getattr(op.overloadpacket, "Tensor", None)
    if tensor_form is not None:
        node.target = tensor_form
    values = [p.value(arg) for arg in node.args]
    if node.target in set(_TENSOR_FORM.values()):
        like = next(val(arg) for arg in node.args if isinstance(arg, fx.Node) and _is_tensor(arg))
        values = [_as_tensor(p, value, like.dtype) for value in values]
    node.args = tuple(values)
    node.kwargs = {key: p.value(value) for key, value in node.kwargs.items()}
    types = [argument.type for argument in overload(node)._schema.arguments]
    for value, kind in zip(node.args, types, strict=False):
        if isinstance(value, fx.Node) and _is_tensor(value) and "Tensor" not in str(kind):
            raise p.refuse("it takes a number where the length is a tensor")
    p.rewriter.modified = True


def _divide_by_no_zero(p: Padder, node: fx.Node) -> None:
    """An integer that is divided by 0 stops the program, in a pad too."""
    divisor = node.args[1] if len(node.args) > 1 else None
    if not isinstance(divisor, fx.Node) or not _is_tensor(divisor) or val(node).dtype.is_floating_point:
        return
    pads = p.pads(divisor)
    harmless = all(
        c.kind is Kind.CONSTANT and c.value != 0 and c.strong for d in pads.padded_dims for c in pads.contents(d)
    )
    if overload(node)._schema.name.split("::")[1] in _DIVISIONS and not harmless:
        p.set_arg(1, p.fill(divisor, pads.padded_dims, 1, "no integer is divided by 0"))


def _log_sigmoid(p: Padder, node: fx.Node) -> Claims:
    """log_sigmoid_forward: the values, and a buffer that nobody reads."""
    pads = p.pads(operand(node, 0))
    values = Pads(tuple(mapped(d, lambda c: FINITE if c.finite else GARBAGE) for d in pads.dims))
    return values, Pads(p.dims_of(val(node)[1]))


def _is_tensor(arg: fx.Node) -> bool:
    return isinstance(val(arg), torch.Tensor)


def _as_tensor(p: Padder, value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (bool, int, float)):
        made = p.raw(aten.full.default, [], value, dtype=dtype)
        p.claims[made] = Pads((), uniform=value)
        return made
    if isinstance(value, fx.Node) and val(value).dtype != dtype and val(value).dim() == 0 and dtype.is_floating_point:
        made = p.raw(aten._to_copy.default, value, dtype=dtype)
        p.claims[made] = Pads(())
        return made
    return value


def _align(p: Padder, node: fx.Node, result: torch.Tensor) -> list[Dim]:
    """One layout per dim of the result; operands of another layout are moved to it."""
    layouts: list[Dim] = []
    for i, size in enumerate(result.shape):
        back = i - result.dim()
        found: Dim | None = None
        for arg in node.all_input_nodes:
            dim = _operand_dim(p, arg, back, size)
            if dim is not None and (found is None or (len(dim) > len(found))) and p.pads(arg).uniform is None:
                found = dim
        layouts.append(found if found is not None else p.dim(size))
    for i, layout in enumerate(layouts):
        back = i - result.dim()
        sizes = tuple(f.size for f in layout)
        for index, given in enumerate(node.args):
            if not isinstance(given, fx.Node):
                continue
            dim = _operand_dim(p, given, back, result.shape[i])
            if dim is None or tuple(f.size for f in dim) == sizes or p.pads(given).uniform is not None:
                continue
            if not any(f.content for f in dim) and not any(f.content for f in layout):
                continue
            target = tuple(Factor(f.size, GARBAGE if f.content else None) for f in layout)
            p.set_arg(index, p.relayout(given, len(p.pads(given).dims) + back, 1, (target,)))
    return layouts


def _operand_dim(p: Padder, arg: fx.Node, back: int, size: Any) -> Dim | None:
    """The dim of an operand that is not broadcast there."""
    if not _is_tensor(arg) or val(arg).dim() < -back:
        return None
    own = val(arg).shape[back]
    if expression(own) != expression(size):
        return None
    if expression(size) == 1:
        return None
    return p.pads(arg).dims[back]


def _content(p: Padder, node: fx.Node, layout: Dim, back: int, dtype: torch.dtype) -> Dim:
    size = val(node).shape[back]
    made = []
    for position, factor in enumerate(layout):
        if factor.content is None:
            made.append(factor)
            continue
        operands: dict[fx.Node, Content | None] = {}
        for arg in node.all_input_nodes:
            dim = _operand_dim(p, arg, back, size)
            pads = p.pads(arg)
            if pads.uniform is not None:
                operands[arg] = constant(pads.uniform)
            else:
                operands[arg] = dim[position].content if dim is not None and len(dim) == len(layout) else None
        made.append(Factor(factor.size, result_of(p, node, operands, dtype)))
    return tuple(made)


def _uniform(p: Padder, node: fx.Node) -> Any:
    operands = node.all_input_nodes
    if not operands or any(p.pads(arg).uniform is None for arg in operands):
        return None
    content = evaluate(node, {arg: p.pads(arg).uniform for arg in operands}, False)
    return content.value


def _iota(p: Padder, node: fx.Node) -> int | None:
    name = overload(node)._schema.name.split("::")[1]
    same = name in ("clone", "alias", "detach", "contiguous", "_to_copy", "to")
    integer = not val(node).dtype.is_floating_point
    return p.pads(operand(node, 0)).iota if same and integer else None


def _glu(p: Padder, node: fx.Node) -> Claims:
    """`a * sigmoid(b)` of the halves of a dim: where that is padded, of its logical halves."""
    x = operand(node, 0)
    dim = wrap(int(argument(node, 1, "dim", -1)), val(x).dim())
    if not p.pads(x).padded(dim):
        dims = [mapped(d, lambda c: FINITE if c.finite else GARBAGE) for d in p.pads(x).dims]
        return Pads((*dims[:dim], p.dim(val(node).shape[dim]), *dims[dim + 1 :]))
    half, whole = (p.size_of(made.shape[dim]) for made in (val(node), val(x)))
    first = p.emit(aten.slice.Tensor, x, dim, 0, half)
    second = p.emit(aten.slice.Tensor, x, dim, half, whole)
    p.log("rewrite", "a gated linear unit is one half times the sigmoid of the other")
    return p.become(p.emit(aten.mul.Tensor, first, p.emit(aten.sigmoid.default, second)))


RULES = (
    Rule(
        (),
        "none; operands of another layout are moved; sizes used as values read the logical length; 1 in an integer "
        "divisor",
        "constant if all operands are; finite for total ops on finite operands; `and` with False, `mul` with 0 and "
        "`where` with a known condition are decided by that operand; else garbage",
        pointwise_claims,
    ),
    Rule((aten.glu.default,), "over a padded dim: as slice, sigmoid and product", "finite if the operand's is", _glu),
    Rule((aten.log_sigmoid_forward.default,), "none", "finite if the operand's is", _log_sigmoid),
)
