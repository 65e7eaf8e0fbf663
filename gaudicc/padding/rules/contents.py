"""What a pointwise op makes of the contents of its operands' pads."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import fx

from gaudicc.nodes import source_of, val
from gaudicc.padding.layout import FINITE, GARBAGE, Content, Kind, constant
from gaudicc.padding.padder import Padder
from gaudicc.padding.rules.rule import operand, overload

# Finite on finite operands of the magnitudes that a model computes with.
_TOTAL = {
    "_conj", "_to_copy", "abs", "add", "addcmul", "alias", "atan", "ceil", "clamp", "clamp_max", "clamp_min",
    "clone", "contiguous", "cos", "detach", "dropout", "elu", "erf", "floor", "fmax", "fmin", "gelu",
    "hardsigmoid", "hardswish", "hardtanh", "imag", "leaky_relu", "lerp", "lift_fresh_copy", "log_sigmoid",
    "logical_not", "masked_fill", "maximum", "minimum", "mish", "mul", "native_dropout", "neg", "real", "relu",
    "relu6", "round", "rsub", "sgn", "sigmoid", "sign", "silu", "sin", "softplus", "sub", "tanh", "to", "trunc",
    "type_as", "where",
}  # fmt: skip


def result_of(p: Padder, node: fx.Node, operands: dict[fx.Node, Content | None], dtype: torch.dtype) -> Content:
    """What the op makes of these contents; None stands for valid values."""
    known = {arg: c.value for arg, c in operands.items() if c is not None and c.kind is Kind.CONSTANT}
    if len(known) == len(operands):
        strong = len(operands) == 1 and all(c is not None and c.strong for c in operands.values())
        return evaluate(node, known, strong)
    name = overload(node)._schema.name.split("::")[1]
    contents = [_of(arg, operands) for arg in node.args]
    if name == "copy" and val(operand(node, 1)).dtype == dtype:
        return _chosen(contents[1])
    absorbing = _absorbed(p, name, contents)
    if absorbing is not None:
        return absorbing
    if name in ("where", "masked_fill"):
        contents = contents[1:] if name == "where" else [contents[0], contents[2]]
    finite = all(c is None or _finite(c) for c in contents)
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


def _finite(content: Content) -> bool:
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


def evaluate(node: fx.Node, known: dict[fx.Node, Any], strong: bool) -> Content:
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
    kwargs = {key: value for key, value in fx.map_arg(node.kwargs, scalar).items() if key != "device"}
    with torch.no_grad():
        return overload(node)(*args, **kwargs).reshape(-1)[0].item()
