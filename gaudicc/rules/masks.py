"""What is known of attention masks before any call: which keys a row may attend at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx

from gaudicc.nodes import call_region, val
from gaudicc.program import InputKind, Program

aten = torch.ops.aten
_ANDS = (aten.bitwise_and.Tensor, aten.logical_and.default, aten.mul.Tensor)
# What leaves every element where it is in the broadcast, or takes some of them.
_VIEWS = (aten.expand.default, aten.unsqueeze.default, aten.view.default, aten.slice.Tensor, aten.alias.default,
          aten.clone.default)  # fmt: skip
# Elements of a mask that are computed at once; a larger one is computed some rows at a time.
_MASK_BLOCK = 1 << 26


Rows = tuple[int, int, int]
"""First row, the one behind the last, and how many there are in all."""


def row_blocks(mask: fx.Node, rows: int) -> Iterator[Rows]:
    """Rows of a mask that are looked at together."""
    step = max(1, _MASK_BLOCK * rows // max(1, val(mask).numel()))
    for row in range(0, rows, step):
        yield row, min(rows, row + step), rows


def band(
    blocks: Iterable[tuple[Rows, torch.Tensor | None]], keys: int, ahead: int | None
) -> tuple[int | None, int | None]:
    """(ahead, window) of the narrowest band that holds every pair which a mask may let through.

    Args:
        blocks: rows, and `[..., rows, keys]`: True where a key may be let through; None if nothing is known.
        keys: columns.
        ahead: what is known without the mask.
    """
    furthest, reach = list[torch.Tensor](), list[torch.Tensor]()
    for (first, last, _), seen in blocks:
        if seen is None or seen.dim() < 2 or seen.shape[-2:] != (last - first, keys):
            return ahead, None
        pairs = seen.reshape(-1, last - first, keys).any(0)
        if ahead is not None:
            pairs = pairs.tril(ahead + first)
        some = pairs.any(-1)
        rows, wide = torch.arange(first, last, device=pairs.device)[some], pairs[some].to(torch.uint8)
        if len(rows):
            furthest.append(keys - 1 - wide.flip(-1).argmax(-1) - rows)
            reach.append(rows - wide.argmax(-1))
    if not furthest:
        return ahead, None
    most = int(torch.cat(furthest).max())
    return most, int(torch.cat(reach).max()) + most + 1


class Masks:
    """What is known of masks before any call: values that depend on constants only."""

    def __init__(self, program: Program) -> None:
        self.constants = {s.name: program.tensors[s.source] for s in program.inputs if s.kind is InputKind.CONSTANT}
        self.program = program
        self._known: dict[fx.Node, torch.Tensor | None] = {}

    def may_attend(
        self, node: fx.Node, module: fx.GraphModule, rows: Rows, floor: float = float("-inf")
    ) -> torch.Tensor | None:
        """True wherever some rows of a mask may let a key through; None if nothing is known.

        Args:
            node: the mask.
            module: the graph that it is in.
            rows: which rows.
            floor: numbers of an added mask that are no larger hide a key.
        """
        exact = self._rows(node, module, rows)
        if exact is not None:
            return exact if exact.dtype == torch.bool else ~(exact <= floor)
        if node.op == "placeholder" and module is not self.program.root:
            return self._at_call_sites(node, module, rows, floor)
        if node.target in _ANDS and val(node).dtype == torch.bool and not node.kwargs:
            known = [self.may_attend(arg, module, rows, floor) for arg in node.args if isinstance(arg, fx.Node)]
            return _all_of([part for part in known if part is not None])
        if node.target in _VIEWS and isinstance(node.args[0], fx.Node):
            inner = self.may_attend(node.args[0], module, rows, floor)
            fits = inner is not None and inner.shape == val(node.args[0]).shape
            return node.target(inner, *node.args[1:]) if fits else None
        return None

    def _at_call_sites(self, node: fx.Node, module: fx.GraphModule, rows: Rows, floor: float) -> torch.Tensor | None:
        """A body's operand: whatever any of its callers may let through."""
        position = [n for n in module.graph.nodes if n.op == "placeholder"].index(node)
        found: dict[fx.Node, torch.Tensor | None] = {}
        for _, caller in self.program.graphs():
            for call in caller.graph.nodes:
                if call.target is call_region and getattr(caller, str(call.args[0].target)) is module:
                    operand = call.args[1 + position]
                    if operand not in found:
                        found[operand] = self.may_attend(operand, caller, rows, floor)
        parts = [part for part in found.values() if part is not None]
        if len(parts) < len(found) or len({part.shape for part in parts}) != 1:
            return None
        return torch.stack(parts).any(0)

    def _rows(self, node: fx.Node, module: fx.GraphModule, rows: Rows) -> torch.Tensor | None:
        """The value of some rows, those of dim -2; the whole of what has other rows."""
        value, (first, last, count) = node.meta.get("val"), rows
        if not isinstance(value, torch.Tensor):
            return None
        cut = value.dim() > 1 and value.shape[-2] == count
        if value.numel() <= _MASK_BLOCK or node.op == "placeholder":
            whole = self._exact(node, module)
            return whole[..., first:last, :] if cut and whole is not None else whole
        if not cut or not _is_by_row(node):
            return None
        operands = {arg: self._rows(arg, module, rows) for arg in node.all_input_nodes}
        if any(operand is None for operand in operands.values()):
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), operands.__getitem__)
        if node.target is aten.expand.default:
            args = (args[0], [*value.shape[:-2], last - first, value.shape[-1]])
        result: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return result

    def _exact(self, node: fx.Node, module: fx.GraphModule) -> torch.Tensor | None:
        if node not in self._known:
            value = self._evaluate(node, module)
            # A model on the meta device has constants without values.
            self._known[node] = None if value is None or value.is_meta else value
        return self._known[node]

    def _evaluate(self, node: fx.Node, module: fx.GraphModule) -> torch.Tensor | None:
        if node.op == "placeholder":
            return self.constants.get(node.name) if module is self.program.root else None
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.numel() > _MASK_BLOCK:
            return None
        if not isinstance(node.target, torch._ops.OpOverload):
            return None
        operands = {arg: self._exact(arg, module) for arg in node.all_input_nodes}
        if (
            any(operand is None for operand in operands.values())
            or torch.Tag.nondeterministic_seeded in node.target.tags
        ):
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), operands.__getitem__)
        result: torch.Tensor = node.target(*args, **kwargs)
        return result


def _is_by_row(node: fx.Node) -> bool:
    """Whether each row of a result, in dim -2, is made of the same row of operands that are aligned at their last dims."""
    if node.target is aten.unsqueeze.default:
        at: Any = node.args[1]
        rank: int = val(node).dim()
        return bool(at % rank < rank - 2)
    also = (aten.expand.default, aten.alias.default, aten.clone.default, aten._to_copy.default)
    return node.target in also or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _all_of(parts: list[Any]) -> torch.Tensor | None:
    if not parts:
        return None
    result: torch.Tensor = parts[0]
    for part in parts[1:]:
        result = result & part
    return result
