"""Second step of recording on the CPU: linears get the layout of their weight that is fastest for their row count.

Measured on CPU (fp32, one thread, weights from memory, shape `[out, in]`), GB/s at one row:

    shape            plain   columns   blocked
    [512, 512]        15.6      24.5      20.3
    [1536, 512]       16.4      25.5      27.3
    [2816, 512]       15.9      26.4      30.4
    [512, 1408]       18.1      27.4      26.0
    [32000, 512]      15.5      28.8      36.0

so blocked, oneDNN's own layout, which serves every row count with one copy of the weight, is taken unless the product is so
small that its 10 to 25 us of dispatch weigh more. There one row takes columns where `out >= in`, stacked over the linears
that read the same input, and plain otherwise; several rows take plain. With kernels in C one row takes plain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from gaudicc.runtime.cpu_calls import can_pack, packed_linear
from gaudicc.runtime.cpu_edit import Editor
from gaudicc.runtime.cpu_native_calls import native_product
from gaudicc.runtime.cpu_weights import PackedWeights, Prepared

_aten = torch.ops.aten
_BLOCKED_FROM = 1 << 20  # multiply-adds below which the dispatch of a oneDNN linear costs more than it saves
_BLOCKED_ROW_FROM = 1 << 19  # the same for one row, which takes a matrix and vector product otherwise
_BF16_COLUMNS_FROM = 8  # out / in: bf16 reads columns slower than rows until the matrix is this wide (measured)
_ACTIVATIONS: dict[Any, str] = {_aten.silu.default: "swish", _aten.relu.default: "relu", _aten.gelu.default: "gelu"}


@dataclass(frozen=True, slots=True)
class Linear:
    """`node` computes `x @ weight.T + bias`.

    Attributes:
        node: the node.
        weight: `[out, in]`.
        rows: the product of the input's leading sizes.
    """

    node: fx.Node
    weight: torch.Tensor
    rows: int

    @property
    def x(self) -> fx.Node:
        """The input, `[..., in]`; read from the node, since earlier rewrites replace inputs of later ones."""
        return self.node.args[int(self.node.target is _aten.addmm.default)]  # type: ignore[return-value]

    @property
    def bias(self) -> fx.Node | None:
        """`[out]` or None."""
        return _bias(self.node)


def lower_linears(editor: Editor, weights: PackedWeights) -> None:
    """Rewrites every linear whose weight is bound."""
    linears = [linear for node in editor.calls() if (linear := _match(editor, node))]
    editor.pin_other_uses(weights, {linear.node for linear in linears})
    groups: dict[Any, list[Linear]] = {}
    for linear in linears:
        alone = None if linear.bias is None or editor.weight(linear.bias) is not None else linear.node
        groups.setdefault((linear.x, linear.bias is None, linear.weight.dtype, alone), []).append(linear)
    for whole in groups.values():
        group = [linear for linear in whole if not _lower_native(editor, weights, linear)]
        blocked = [part for part in _parts(editor, group) if _lower_blocked(editor, weights, part)]
        done = [linear.node for part in blocked for linear in part]
        rest = [linear for linear in group if linear.node not in done]
        if not rest:
            continue
        stacked = _stack(editor, weights, rest)
        if rest[0].rows == 1:
            _lower_row(editor, weights, rest, stacked)
            continue
        for linear in rest:
            _lower_rows(editor, linear)


def _lower_native(editor: Editor, weights: PackedWeights, linear: Linear) -> bool:
    """One row with kernels in C reads the weight as it lies, about as fast as memory gives it, and needs no second layout.

    Measured on CPU, one thread, `[32000, 512]` from memory: 0.79 of the time of `mv` by rows, 0.9 to 1.0 of the better of columns
    and blocked.
    """
    if editor.native is None or linear.rows != 1 or weights.release:
        return False
    last, residual = _residual(linear)
    addend = linear.bias if residual is None else residual
    product = native_product(editor, last, linear.weight, linear.x, *(() if addend is None else (addend,)))
    if product is None:
        return False
    editor.replace(last, product)
    return True


def _parts(editor: Editor, group: list[Linear]) -> list[list[Linear]]:
    """A group's linears by what one blocked product computes: all of them, or each alone where a bias is no weight.

    One product of gate and up, and the activation by itself, took 0.96 to 0.98 of the time of two products with the
    activation fused into the first, at 128 rows of a decoder (measured on CPU).
    """
    if any(linear.bias is not None and editor.weight(linear.bias) is None for linear in group):
        return [[linear] for linear in group]
    return [group] if group else []


def _stack(editor: Editor, weights: PackedWeights, group: list[Linear]) -> Prepared | None:
    """The group's weights by columns, if that is their layout; `release` gives it to other row counts as well."""
    out, width = sum(linear.weight.shape[0] for linear in group), group[0].weight.shape[1]
    by_columns = out >= width * (1 if group[0].weight.dtype == torch.float32 else _BF16_COLUMNS_FROM)
    wanted = by_columns and (group[0].rows == 1 or weights.release)
    if not wanted or not all(editor.can_derive(linear.weight) for linear in group):
        return None
    whole = all(editor.is_bound(linear.weight) for linear in group)
    if weights.release and not whole and group[0].rows > 1:
        return None
    stacked = weights.columns(tuple(linear.weight for linear in group), adopt=weights.release and whole)
    editor.held.append(stacked)
    return stacked


def _match(editor: Editor, node: fx.Node) -> Linear | None:
    """The linear that this node computes, if its weight is a bound one."""
    if node.target is _aten.linear.default:
        x, weight = node.args[0], editor.weight(node.args[1])
    elif node.target is _aten.addmm.default and not node.kwargs:
        x, weight = node.args[1], _transposed(editor.weight(node.args[2]))
    elif node.target in (_aten.mm.default, _aten.matmul.default):
        x, weight = node.args[0], _transposed(editor.weight(node.args[1]))
    else:
        return None
    if weight is None or weight.dim() != 2 or not isinstance(x, fx.Node) or x.meta["val"].dim() == 0:
        return None
    bias = _bias(node)
    rows = math.prod(x.meta["val"].shape[:-1])
    if rows == 0 or weight.numel() == 0 or not weight.dtype.is_floating_point:
        return None
    if bias is not None and bias.meta["val"].shape != (weight.shape[0],):
        return None
    return Linear(node, weight, rows)


def _bias(node: fx.Node) -> fx.Node | None:
    if node.target is _aten.addmm.default:
        return node.args[0]  # type: ignore[return-value]
    if node.target is _aten.linear.default:
        return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")  # type: ignore[return-value]
    return None


def _transposed(weight: torch.Tensor | None) -> torch.Tensor | None:
    return weight.t() if weight is not None and weight.dim() == 2 else None


def _lower_row(editor: Editor, weights: PackedWeights, group: list[Linear], stacked: Prepared | None) -> None:
    """One row: a product of matrix and vector, for all linears of the group at once where they are stacked."""
    if stacked is None:
        for linear in group:
            matrix = editor.bind("weight", linear.weight)
            _one_product(editor, linear, matrix)
        return
    matrix = editor.bind_prepared("columns", stacked)
    if len(group) == 1:
        _one_product(editor, group[0], matrix)
        return
    first = group[0]
    vector = editor.before(first.node).flat_view(first.x, [first.weight.shape[1]])
    if first.bias is None:
        product = editor.call(_aten.mv.default, matrix, vector)
    else:
        product = editor.call(_aten.addmv.default, _joined_bias(editor, weights, group), matrix, vector)
    _take_apart(editor, group, product)


def _one_product(editor: Editor, linear: Linear, matrix: fx.Node) -> None:
    """`mv`, with the bias or a residual added by the same call."""
    out, width = linear.weight.shape
    last, residual = _residual(linear)
    addend = linear.bias if residual is None else residual
    vector = editor.before(last).flat_view(linear.x, [width])
    if addend is None:
        product = editor.call(_aten.mv.default, matrix, vector)
    else:
        product = editor.call(_aten.addmv.default, editor.flat_view(addend, [out]), matrix, vector)
    editor.replace(last, editor.flat_view(product, list(last.meta["val"].shape)))


def _lower_rows(editor: Editor, linear: Linear) -> None:
    """Several rows on the plain weight: one matrix product."""
    out, width = linear.weight.shape
    last, residual = _residual(linear)
    matrix = editor.before(last).call(_aten.t.default, editor.bind("weight", linear.weight))
    rows = editor.flat_view(linear.x, [linear.rows, width])
    if residual is not None:
        product = editor.call(_aten.addmm.default, editor.flat_view(residual, [linear.rows, out]), rows, matrix)
    elif linear.bias is not None:
        product = editor.call(_aten.addmm.default, linear.bias, rows, matrix)
    else:
        product = editor.call(_aten.mm.default, rows, matrix)
    editor.replace(last, editor.flat_view(product, list(last.meta["val"].shape)))


def _lower_blocked(editor: Editor, weights: PackedWeights, part: list[Linear]) -> bool:
    """One product in oneDNN's layout, if that pays; a linear by itself takes its activation along where oneDNN offers it.

    A sum or product with another tensor stays a call of its own: fused, it was 8 to 11 % slower at 16 to 512 rows (measured).
    """
    first, sources = part[0], tuple(linear.weight for linear in part)
    size, dtype = sum(weight.numel() for weight in sources), first.weight.dtype
    pays = size >= _BLOCKED_ROW_FROM if first.rows == 1 else first.rows * size >= _BLOCKED_FROM
    suits = can_pack(dtype) and (first.rows > 1 or dtype == torch.float32)
    if weights.release or not pays or not suits or not all(map(editor.can_derive, sources)):
        return False
    user = _activation(first) if len(part) == 1 else None
    activation = "none" if user is None else _ACTIVATIONS[user.target]
    algorithm = str(user.kwargs.get("approximate", "none")) if user is not None and activation == "gelu" else ""
    packed = editor.bind_prepared("packed", weights.blocked(sources))
    shape = (*first.x.meta["val"].shape[:-1], sum(weight.shape[0] for weight in sources))
    arguments: tuple[Any, ...] = (first.x, packed, _joined_bias(editor, weights, part), activation, [], algorithm)
    like = torch.empty(shape, dtype=dtype, device="meta")
    product = editor.before(user or first.node).opaque(packed_linear, arguments, like=like)
    if len(part) == 1:
        editor.replace(user or first.node, product)
    else:
        _take_apart(editor, part, product)
    return True


def _activation(linear: Linear) -> fx.Node | None:
    """The activation that is all that reads a linear."""
    user = next(iter(linear.node.users), linear.node)
    return user if len(linear.node.users) == 1 and user.target in _ACTIVATIONS else None


def _take_apart(editor: Editor, part: list[Linear], product: fx.Node) -> None:
    """Gives each linear its piece of a joint product; one row is seen as one dimension, where pieces have no gaps."""
    value = product.meta["val"]
    if part[0].rows == 1:
        product = editor.flat_view(product, [value.numel()])
    offset = 0
    for linear in part:
        out = linear.weight.shape[0]
        piece = editor.call(_aten.slice.Tensor, product, product.meta["val"].dim() - 1, offset, offset + out)
        editor.replace(linear.node, editor.flat_view(piece, list(linear.node.meta["val"].shape)))
        offset += out


def _joined_bias(editor: Editor, weights: PackedWeights, part: list[Linear]) -> fx.Node | None:
    """The biases of linears that one product computes, one behind the other."""
    if len(part) == 1 or part[0].bias is None:
        return part[0].bias
    biases = [editor.weight(linear.bias) for linear in part]
    if any(bias is None or not editor.can_derive(bias) for bias in biases):
        return editor.call(_aten.cat.default, [linear.bias for linear in part])
    return editor.bind_prepared("bias", weights.derive("bias", tuple(biases), _join))  # type: ignore[arg-type]


def _residual(linear: Linear) -> tuple[fx.Node, fx.Node | None]:
    """The node that ends the linear and what it adds: a plain sum with a tensor of the same shape."""
    user = next(iter(linear.node.users), linear.node)
    if len(linear.node.users) != 1 or user.target is not _aten.add.Tensor or user.kwargs or linear.bias is not None:
        return linear.node, None
    other = user.args[0] if user.args[1] is linear.node else user.args[1]
    if not isinstance(other, fx.Node) or other is linear.node or not _same(other, linear.node):
        return linear.node, None
    return user, other


def _same(one: fx.Node, two: fx.Node) -> bool:
    a, b = one.meta["val"], two.meta["val"]
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.is_contiguous() and b.is_contiguous())


def _join(*biases: torch.Tensor) -> torch.Tensor:
    return torch.cat([bias.detach() for bias in biases])
