"""Pointwise ops: nothing is demanded; what the pads hold follows from the op."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import fx

from gaudicc.padding.layout import FINITE, GARBAGE, Content, Dim, Factor, Kind, Pads, constant, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand, overload
from gaudicc.padding.sizes import expression
from gaudicc.program import source_of, val

# Finite on finite operands of the magnitudes that a model computes with.
_TOTAL = {
    "_conj", "_to_copy", "abs", "add", "addcmul", "alias", "atan", "ceil", "clamp", "clamp_max", "clamp_min",
    "clone", "contiguous", "cos", "detach", "dropout", "elu", "erf", "floor", "fmax", "fmin", "gelu",
    "hardsigmoid", "hardswish", "hardtanh", "imag", "leaky_relu", "lerp", "lift_fresh_copy", "log_sigmoid",
    "logical_not", "masked_fill", "maximum", "minimum", "mish", "mul", "native_dropout", "neg", "real", "relu",
    "relu6", "round", "rsub", "sgn", "sigmoid", "sign", "silu", "sin", "softplus", "sub", "tanh", "to", "trunc",
    "type_as", "where",
}  # fmt: skip
_EXTRA = (
    aten._to_copy.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other,
    aten.type_as.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
    aten.lift_fresh_copy.default, aten.dropout.default, aten.log_sigmoid.default, aten.gelu.default,
    aten.mish.default, aten.hardswish.default, aten.masked_fill.Scalar, aten.masked_fill.Tensor,
    aten.logical_not.default, aten.bucketize.Tensor, aten.polar.default, aten.complex.default,
    aten.relu6.default, aten.selu.default, aten.celu.default, aten.addcmul.default, aten.softplus.default,
    aten.hardsigmoid.default, aten.hardtanh.default, aten.isnan.default, aten.isinf.default, aten.copy.default,
)  # fmt: skip
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
        made.append(Factor(factor.size, _result(p, node, operands, dtype)))
    return tuple(made)


def _result(p: Padder, node: fx.Node, operands: dict[fx.Node, Content | None], dtype: torch.dtype) -> Content:
    """What the op makes of these contents; None stands for valid values."""
    known = {arg: c.value for arg, c in operands.items() if c is not None and c.kind is Kind.CONSTANT}
    if len(known) == len(operands):
        strong = len(operands) == 1 and all(c is not None and c.strong for c in operands.values())
        return _evaluate(node, known, strong)
    name = overload(node)._schema.name.split("::")[1]
    contents = [_of(arg, operands) for arg in node.args]
    if name == "copy" and val(operand(node, 1)).dtype == dtype:
        return _chosen(contents[1])
    absorbing = _absorbed(p, name, contents)
    if absorbing is not None:
        return absorbing
    if name in ("where", "masked_fill"):
        contents = contents[1:] if name == "where" else [contents[0], contents[2]]
    finite = all(c is None or p_finite(c) for c in contents)
    if name in ("div", "true_divide"):
        divisor = contents[1]
        ok = divisor is not None and divisor.kind is Kind.CONSTANT and divisor.value != 0
        return FINITE if finite and ok else GARBAGE
    if name in ("pow",):
        exponent = contents[1]
        ok = exponent is not None and exponent.kind is Kind.CONSTANT and exponent.value in (0, 1, 2, 3, 4)
        return FINITE if finite and ok else GARBAGE
    if name in ("_to_copy", "to", "type_as") and dtype is torch.float16 and not _narrows_floats(node):
        return GARBAGE
    if finite and name in _TOTAL:
        return FINITE
    if name in ("_to_copy", "to", "type_as") and dtype.is_floating_point and not _floating(node):
        return FINITE  # every integer is a finite float
    return GARBAGE


def p_finite(content: Content) -> bool:
    """Whether a content is finite, for deriving claims (relying on them is what strict mode forbids)."""
    return content.finite


def _floating(node: fx.Node) -> bool:
    return bool(val(operand(node, 0)).dtype.is_floating_point or val(operand(node, 0)).dtype.is_complex)


def _narrows_floats(node: fx.Node) -> bool:
    return val(operand(node, 0)).dtype in (torch.float16,)


def _of(arg: Any, operands: dict[fx.Node, Content | None]) -> Content | None:
    if isinstance(arg, fx.Node):
        return operands.get(arg)
    return constant(arg) if isinstance(arg, (bool, int, float)) else None


def _absorbed(p: Padder, name: str, contents: list[Content | None]) -> Content | None:
    """Results that one operand decides alone."""
    first = [c for c in contents[:2]]
    if name in ("bitwise_and", "logical_and", "__and__") and any(
        c is not None and c.is_constant(False) and _is_bool_or_zero(c) for c in first
    ):
        return constant(False)
    if name in ("logical_or",) and any(c is not None and c.kind is Kind.CONSTANT and c.value for c in first):
        return constant(True)
    if name in ("bitwise_or", "__or__") and any(c is not None and c.value is True for c in first):
        return constant(True)
    if name == "mul" and any(c is not None and c.is_constant(0) for c in first):
        others = [c for c in first if c is None or not c.is_constant(0)]
        if all(c is None or c.finite for c in others) and not p.strict:
            p.journal.finite[f"a product with constant 0, at {source_of(p.node)}"] = None
            return constant(0.0 if val(p.node).dtype.is_floating_point else 0)
    if name == "where" and contents[0] is not None and contents[0].kind is Kind.CONSTANT:
        return _chosen(contents[1] if contents[0].value else contents[2])
    if name == "masked_fill" and contents[1] is not None and contents[1].kind is Kind.CONSTANT:
        return _chosen(contents[2] if contents[1].value else contents[0])
    return None


def _chosen(content: Content | None) -> Content:
    return FINITE if content is None else content.weak


def _is_bool_or_zero(content: Content) -> bool:
    return content.value is False or content.value == 0


def _evaluate(node: fx.Node, known: dict[fx.Node, Any], strong: bool) -> Content:
    """Runs the op on the constants. A float constant 0 may be -0.0 (0 x -1), so that both must give the same."""
    signs = [(value, -value) if isinstance(value, float) and value == 0 else (value,) for value in known.values()]
    results = {_run(node, dict(zip(known, values, strict=True))) for values in itertools.product(*signs)}
    return constant(results.pop(), strong=strong) if len(results) == 1 else GARBAGE


def _run(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    def scalar(arg: fx.Node) -> Any:
        value = val(arg)
        if not isinstance(value, torch.Tensor):
            return known[arg]
        shape = () if value.dim() == 0 else (1,)  # type promotion tells them apart
        return torch.full(shape, known[arg], dtype=value.dtype)

    args = fx.map_arg(node.args, scalar)
    kwargs = fx.map_arg(node.kwargs, scalar)
    with torch.no_grad():
        return overload(node)(*args, **kwargs).reshape(-1)[0].item()


def _uniform(p: Padder, node: fx.Node) -> Any:
    operands = node.all_input_nodes
    if not operands or any(p.pads(arg).uniform is None for arg in operands):
        return None
    content = _evaluate(node, {arg: p.pads(arg).uniform for arg in operands}, False)
    return content.value


def _iota(p: Padder, node: fx.Node) -> int | None:
    name = overload(node)._schema.name.split("::")[1]
    same = name in ("clone", "alias", "detach", "contiguous", "_to_copy", "to")
    integer = not val(node).dtype.is_floating_point
    return p.pads(operand(node, 0)).iota if same and integer else None


RULES = (
    Rule(
        (),
        "none; operands of another layout are moved; sizes used as values read the logical length",
        "constant if all operands are; finite for total ops on finite operands; `and` with False, `mul` with 0 and "
        "`where` with a known condition are decided by that operand; else garbage",
        pointwise_claims,
    ),
)
