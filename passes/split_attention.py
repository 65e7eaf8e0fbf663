"""split-attention: `gaudicc::attention` -> independent slices that keep MME and TPC busy, where that is modelled faster."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx

from gaudicc.invariants import STATIC, TYPED, WELL_FORMED, Invariant, verdict_of
from gaudicc.kernels import attention, merge_parts, sink_attention, softmax_part, softmax_tile
from gaudicc.kernels.split import join_blocks, sliced_attention
from gaudicc.machine import CHIPS, Chip, load_chip
from gaudicc.machine.attention import AttentionShape, Split, Tile, body_heads, head_blocks, tiles, with_heads
from gaudicc.machine.fx import attention_shape
from gaudicc.machine.split import BODY_SLICES, MOST_SLICES, Choice, choose_split
from gaudicc.nodes import val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.bodies import add_body, call_body, new_body
from gaudicc.rules.masks import Masks, band, row_blocks
from gaudicc.targets import Support

aten = torch.ops.aten
_ATTENTIONS = (attention, sink_attention)
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# Alternatives named in a note.
_SHOWN = 5


@dataclass(frozen=True)
class SplitAttention(GraphPass):
    """Cuts attention into slices by heads, query rows and keys, where the machine model finds that faster.

    One attention is one kernel, in which the MME waits for the softmax and the TPCs for the products. Slices that do not
    depend on each other let Gaudi's graph compiler run the products of one under the softmax of another; each stays what
    it pipelines: a product, one vector node, a product. Blocks that causality, a window or a constant mask rules out are
    not computed. Where keys are cut, each slice brings its row maximum and row sum, and the merge is exact. The choice is
    made per bucket, under the graph compiler's own scheduling policy. Of many slices those of some heads are written down,
    as a body that is called for all heads. A sink is given to the first slice of a row only, so it counts once.

        %26 = gaudicc.attention(%q, %k, %v, None, True, 0.25)
        ->
        %3 = aten.matmul(%q0, %k0t); %4 = gaudicc.softmax_tile(%3, None, None, 0, 0.25); %5 = aten.matmul(%4, %v0)
        ...;  %26 = aten.transpose.int(aten.cat([%5, ...], 1), 1, 2)

    Refuses (and leaves to the next passes) other dtypes than bf16, fp16 and fp32, a target that the machine model does not
    know, and whatever gains less than 3 % over the fused kernel. Every time in the notes is modelled.

    Attributes:
        most_slices: slices of one attention at most; each costs compile time and memory.
        body_slices: slices of one graph at most, if one block of heads has no more.
        force: this split whatever the model says; for tests and experiments.
    """

    most_slices: int = MOST_SLICES
    body_slices: int = BODY_SLICES
    force: Split | None = None

    name: ClassVar[str] = "split-attention"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, STATIC})
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """One decision per attention; equal ones share theirs."""
        for node in [n for n in rewriter.graph.nodes if n.target in _ATTENTIONS]:
            _drop_copies(rewriter, node)
        chip = program.target.name if program.target else None
        decided: dict[tuple[AttentionShape, bool], Choice] = {}
        masks = Masks(program)
        for node in [n for n in rewriter.graph.nodes if n.target in _ATTENTIONS]:
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
                heads = body_heads(shape, split, self.body_slices)
                if heads < shape.batch * shape.heads:
                    _apply_by_heads(rewriter, node, shape, split, heads, program)
                else:
                    _apply(rewriter, node, shape, split)
            elif node.meta.get("band") != (shape.ahead, shape.window):
                node.meta["band"] = (shape.ahead, shape.window)
                rewriter.modified = True


def _misfit(node: fx.Node) -> str | None:
    q, k, v = (val(arg) for arg in node.args[:3])  # type: ignore[arg-type]
    if {q.dtype, k.dtype, v.dtype} - set(_DTYPES) or len({q.dtype, k.dtype, v.dtype}) > 1:
        return f"its operands are {q.dtype}, {k.dtype} and {v.dtype}"
    return None if q.numel() and k.numel() and v.numel() else "it is empty"


def _shape_of(node: fx.Node, masks: Masks, module: fx.GraphModule) -> AttentionShape:
    mask, causal = node.args[3:5]
    shape = attention_shape(node)
    if not isinstance(mask, fx.Node):
        return shape
    floor = float("-inf")
    if node.target is sink_attention and val(mask).dtype.is_floating_point:
        # Beside a sink as good as minus infinity; without one a row of it alone gives the mean of all values.
        floor = torch.finfo(val(mask).dtype).min
    seen = ((rows, masks.may_attend(mask, module, rows, floor)) for rows in row_blocks(mask, shape.queries))
    ahead, window = band(seen, shape.keys, 0 if causal else None)
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
    build = partial(_sliced, tiles=list(tiles(shape, split)))
    new = rewriter.inline(build, *node.args, like=node)
    _mark_slices([made for made in rewriter.graph.nodes if made not in before])
    rewriter.replace(node, new)


def _sliced(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, sink: Tensor | None = None,
    *, tiles: list[Tile],
) -> Tensor:  # fmt: skip
    """`sliced_attention` of the arguments that an attention has, with or without a sink."""
    return sliced_attention(q, k, v, mask, causal, scale, tiles, sink)


def _apply_by_heads(
    rewriter: Rewriter, node: fx.Node, shape: AttentionShape, split: Split, heads: int, program: Program
) -> None:
    """The slices of so many heads as a body, called for each block of them."""
    blocks, groups = list(head_blocks(shape, heads)), shape.heads // shape.kv_heads
    q, k, v, mask, causal, scale, *sinks = cast(Any, node.args)
    masked = mask is not None
    known: dict[tuple[Any, ...], fx.Node] = {}

    def cut(arg: Any, *spans: tuple[int, int]) -> fx.Node:
        for dim, span in enumerate(spans, val(arg).dim() - 4):
            size = val(arg).shape[dim] if dim >= 0 else 1
            if span != (0, size) and size > 1:
                key = arg, dim, span
                known[key] = known.get(key) or rewriter.emit(aten.slice.Tensor, arg, dim, *span, like=node)
                arg = known[key]
        return arg  # type: ignore[no-any-return]

    def build(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> Tensor:
        mask = others[0] if masked else None
        return _sliced(
            q, k, v, mask, causal, scale, *others[masked:], tiles=list(tiles(with_heads(shape, heads), split))
        )

    name, results = "", []
    for batch, (low, high) in blocks:
        rows, shared = (batch, (low, high)), (batch, (low // groups, -(-high // groups)))
        operands = [cut(q, *rows), cut(k, *shared), cut(v, *shared)]
        operands += [cut(mask, *rows)] if masked else []
        operands += [cut(sink, *3 * ((0, 1),), (low, high)) for sink in sinks]  # its only dim is that of heads
        if not name:
            body, made = new_body(build, operands, node)
            _mark_slices(made)
            name = add_body(rewriter, body, "attention_of_heads", [name for name, _ in program.graphs()])
        results.append(call_body(rewriter, name, operands, node))
    rewriter.replace(node, rewriter.inline(partial(join_blocks, blocks=blocks), results, like=node))


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
