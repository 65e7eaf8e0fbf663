"""split-attention: `gaudicc::attention` -> independent slices that keep MME and TPC busy, where that is modelled faster."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import fx

from gaudicc.invariants import STATIC, TYPED, WELL_FORMED, Invariant, verdict_of
from gaudicc.kernels import attention, merge_parts, softmax_part, softmax_tile
from gaudicc.kernels.split import sliced_attention
from gaudicc.machine import CHIPS, Chip, load_chip
from gaudicc.machine.attention import AttentionShape, Split, tiles
from gaudicc.machine.fx import attention_shape
from gaudicc.machine.split import MOST_SLICES, Choice, choose_split
from gaudicc.nodes import call_region, val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import InputKind, Program
from gaudicc.rewriter import Rewriter
from gaudicc.targets import Support

aten = torch.ops.aten
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_ANDS = (aten.bitwise_and.Tensor, aten.logical_and.default, aten.mul.Tensor)
# What leaves every element where it is in the broadcast, or takes some of them.
_VIEWS = (aten.expand.default, aten.unsqueeze.default, aten.view.default, aten.slice.Tensor, aten.alias.default,
          aten.clone.default)  # fmt: skip
# Elements of a mask that are computed at once; a larger one is computed some rows at a time.
_MASK_BLOCK = 1 << 26
# Alternatives named in a note.
_SHOWN = 5


Rows = tuple[int, int, int]
"""First row, the one behind the last, and how many there are in all."""


@dataclass(frozen=True)
class SplitAttention(GraphPass):
    """Cuts attention into slices by heads, query rows and keys, where the machine model finds that faster.

    One attention is one kernel, in which the MME waits for the softmax and the TPCs for the products. Slices that do not
    depend on each other let Gaudi's graph compiler run the products of one under the softmax of another; each stays what
    it pipelines: a product, one vector node, a product. Blocks that causality, a window or a constant mask rules out are
    not computed. Where keys are cut, each slice brings its row maximum and row sum, and the merge is exact. The choice is
    made per bucket, under the graph compiler's own scheduling policy.

        %26 = gaudicc.attention(%q, %k, %v, None, True, 0.25)
        ->
        %3 = aten.matmul(%q0, %k0t); %4 = gaudicc.softmax_tile(%3, None, None, 0, 0.25); %5 = aten.matmul(%4, %v0)
        ...;  %26 = aten.transpose.int(aten.cat([%5, ...], 1), 1, 2)

    Refuses (and leaves to the next passes) other dtypes than bf16, fp16 and fp32, a target that the machine model does not
    know, and whatever gains less than 3 % over the fused kernel. Every time in the notes is modelled.

    Attributes:
        most_slices: slices of one attention at most; each costs compile time and memory.
        force: this split whatever the model says; for tests and experiments.
    """

    most_slices: int = MOST_SLICES
    force: Split | None = None

    name: ClassVar[str] = "split-attention"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, STATIC})
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """One decision per attention; equal ones share theirs."""
        for node in [n for n in rewriter.graph.nodes if n.target is attention]:
            _drop_copies(rewriter, node)
        chip = program.target.name if program.target else None
        decided: dict[tuple[AttentionShape, bool], Choice] = {}
        masks = _Masks(program)
        for node in [n for n in rewriter.graph.nodes if n.target is attention]:
            if chip not in CHIPS:
                yield f"{node.name} left: the machine model does not know the target"
                continue
            if reason := _misfit(node):
                yield f"{node.name} left: {reason}"
                continue
            shape = _shape_of(node, masks, rewriter.module)
            fused = verdict_of(node, program).support is not Support.NO
            split = self.force
            if split is None:
                key = (shape, fused)
                if key not in decided:
                    decided[key] = choose_split(shape, load_chip(chip), fused=fused, most_slices=self.most_slices)
                    yield _note(node, decided[key], load_chip(chip))
                split = decided[key].best.split
            if split is not None:
                _apply(rewriter, node, shape, split)
            elif node.meta.get("band") != (shape.ahead, shape.window):
                node.meta["band"] = (shape.ahead, shape.window)
                rewriter.modified = True


def _misfit(node: fx.Node) -> str | None:
    q, k, v = (val(arg) for arg in node.args[:3])  # type: ignore[arg-type]
    if {q.dtype, k.dtype, v.dtype} - set(_DTYPES) or len({q.dtype, k.dtype, v.dtype}) > 1:
        return f"its operands are {q.dtype}, {k.dtype} and {v.dtype}"
    return None if q.numel() and k.numel() and v.numel() else "it is empty"


def _shape_of(node: fx.Node, masks: _Masks, module: fx.GraphModule) -> AttentionShape:
    mask, causal = node.args[3:5]
    shape = attention_shape(node)
    if not isinstance(mask, fx.Node):
        return shape
    step = max(1, _MASK_BLOCK * shape.queries // max(1, val(mask).numel()))
    blocks = [(row, min(shape.queries, row + step), shape.queries) for row in range(0, shape.queries, step)]
    seen = ((rows, masks.may_attend(mask, module, rows)) for rows in blocks)
    ahead, window = _band(seen, shape.keys, 0 if causal else None)
    return replace(shape, ahead=ahead, window=window)


def _drop_copies(rewriter: Rewriter, node: fx.Node) -> None:
    """Attention is laid out heads last; a copy to heads first that is only copied back is none that a device must make."""
    for copy in [user for user in node.users if user.target is aten.clone.default]:
        views = list(copy.users)
        backs = [back for view in views for back in view.users]
        if all(view.target is aten.transpose.int for view in views) and all(
            back.target is aten.clone.default and back.kwargs.get("memory_format") is torch.contiguous_format
            for back in backs
        ):
            for view in views:
                direct = rewriter.emit(view.target, node, *view.args[1:], like=view)
                for back in [back for back in view.users if val(direct).is_contiguous()]:
                    rewriter.replace(back, direct)


def _apply(rewriter: Rewriter, node: fx.Node, shape: AttentionShape, split: Split) -> None:
    before = set(rewriter.graph.nodes)
    build = partial(sliced_attention, tiles=list(tiles(shape, split)))
    new = rewriter.inline(build, *node.args, like=node)
    _mark_slices([made for made in rewriter.graph.nodes if made not in before])
    rewriter.replace(node, new)


def _mark_slices(nodes: list[fx.Node]) -> None:
    """Numbers the nodes of each slice, and marks merges, so that a schedule can be drawn as the graph compiler makes it."""
    for index, softmax in enumerate(n for n in nodes if n.target in (softmax_tile, softmax_part)):
        weights = [user for user in softmax.users if user.target is operator.getitem] or [softmax]
        slice_nodes = [softmax.args[0], softmax, *(user for made in weights for user in made.users)]
        for node in slice_nodes:
            if isinstance(node, fx.Node) and node.target is not merge_parts:
                node.meta["slice"] = index
    for merge in (n for n in nodes if n.target is merge_parts):
        place = merge.args[3].meta["slice"]  # type: ignore[union-attr]
        casts = [user for made in merge.users for user in made.users if user.target is aten._to_copy.default]
        for node in (merge, *casts):
            node.meta.update(slice=place, merge=True)


def _note(node: fx.Node, choice: Choice, chip: Chip) -> str:
    others = [option for option in choice.options if option is not choice.best]
    listed = ", ".join(f"{option.name} {option.seconds * 1e6:.1f} us" for option in others[:_SHOWN])
    what = f"{choice.best.slices} slices" if choice.best.split else "left as it is"
    return (
        f"{node.name} {what}: {choice.best.name} {choice.best.seconds * 1e6:.1f} us modelled on {chip.name}; "
        f"others: {listed or 'none'}; {choice.considered} splits considered, none below {choice.bound * 1e6:.1f} us"
    )


def _band(
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


class _Masks:
    """What is known of masks before any call: values that depend on constants only."""

    def __init__(self, program: Program) -> None:
        self.constants = {s.name: program.tensors[s.source] for s in program.inputs if s.kind is InputKind.CONSTANT}
        self.program = program
        self._known: dict[fx.Node, torch.Tensor | None] = {}

    def may_attend(self, node: fx.Node, module: fx.GraphModule, rows: Rows) -> torch.Tensor | None:
        """True wherever some rows of a mask may let a key through; None if nothing is known."""
        exact = self._rows(node, module, rows)
        if exact is not None:
            return exact if exact.dtype == torch.bool else exact != float("-inf")
        if node.op == "placeholder" and module is not self.program.root:
            return self._at_call_sites(node, module, rows)
        if node.target in _ANDS and val(node).dtype == torch.bool and not node.kwargs:
            known = [self.may_attend(arg, module, rows) for arg in node.args if isinstance(arg, fx.Node)]
            return _all_of([part for part in known if part is not None])
        if node.target in _VIEWS and isinstance(node.args[0], fx.Node):
            inner = self.may_attend(node.args[0], module, rows)
            fits = inner is not None and inner.shape == val(node.args[0]).shape
            return node.target(inner, *node.args[1:]) if fits else None
        return None

    def _at_call_sites(self, node: fx.Node, module: fx.GraphModule, rows: Rows) -> torch.Tensor | None:
        """A body's operand: whatever any of its callers may let through."""
        position = [n for n in module.graph.nodes if n.op == "placeholder"].index(node)
        found: dict[fx.Node, torch.Tensor | None] = {}
        for _, caller in self.program.graphs():
            for call in caller.graph.nodes:
                if call.target is call_region and getattr(caller, str(call.args[0].target)) is module:
                    operand = call.args[1 + position]
                    if operand not in found:
                        found[operand] = self.may_attend(operand, caller, rows)
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
