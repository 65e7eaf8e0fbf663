"""Program -> text: one line a node, stable from run to run, repeats folded, made to be diffed.

%12: bf16[1, 32, S, 128] = aten.matmul(%10, %11)  # MME  layers.0.attn  model.py:88
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any

from torch import fx

from gaudicc.nodes import CALLS, call_loop, call_region, module_of, op_name, operands_of, outputs_of, source_of
from gaudicc.program import InputKind, InputSpec, Program
from gaudicc.rewriter import shape_text
from gaudicc.targets.model import Engine

Namer = Callable[[fx.Node], str]


def program_text(program: Program, *, numbered: bool = True) -> str:
    """The whole program: unique bodies, then the root.

    Args:
        program: what to print.
        numbered: name values `%0, %1, ...`; otherwise by their node names, which survive passes and so keep diffs short.
    """
    names = {dim.symbol: dim.name for dim in program.dimensions}
    parts = [f"# {dim.name}: {dim.low} .. {dim.high}" for dim in program.dimensions]
    for name, graph in program.graphs():
        specs = {spec.name: spec for spec in program.inputs} if graph is program.root else {}
        parts.append("\n".join(graph_lines(name, graph, specs, names, numbered=numbered)))
    return "\n\n".join(parts) + "\n"


def graph_lines(
    name: str,
    module: fx.GraphModule,
    specs: Mapping[str, InputSpec],
    sizes: Mapping[str, str],
    *,
    numbered: bool = True,
) -> Iterator[str]:
    """The lines of one graph: its inputs, one line a node, its outputs."""
    namer = _numbers(module.graph) if numbered else (lambda node: f"%{node.name}")
    yield f"graph {name}:"
    yield from _placeholder_lines(module.graph, specs, sizes, namer)
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    for body, run in groupby(nodes, key=lambda node: _repeat_key(node)):
        group = list(run)
        if body is None or len([node for node in group if node.target is call_region]) < 3:
            for node in group:
                yield f"  {_node_line(node, sizes, namer)}"
        else:
            yield from _folded_calls(group, sizes, namer)
    values = ", ".join(_literal(value, namer) for value in outputs_of(module.graph))
    yield f"  return ({values})"


def _numbers(graph: fx.Graph) -> Namer:
    # Placeholders keep their names (they are the interface), and get_attr nodes only name bodies.
    numbers: dict[fx.Node, str] = {}
    count = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            numbers[node] = f"%{node.name}"
        elif node.op == "call_function":
            numbers[node] = f"%{count}"
            count += 1
    return lambda node: numbers.get(node, f"%{node.name}")


def _placeholder_lines(
    graph: fx.Graph, specs: Mapping[str, InputSpec], sizes: Mapping[str, str], namer: Namer
) -> Iterator[str]:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]

    def fold_key(node: fx.Node) -> tuple[str, str]:
        spec = specs.get(node.name)
        if spec is None or spec.kind is InputKind.USER:
            return node.name, ""
        return re.sub(r"\.\d+\.", ".*.", spec.source), shape_text(node.meta["val"], sizes)

    folded: dict[tuple[str, str], list[fx.Node]] = {}
    for node in placeholders:
        folded.setdefault(fold_key(node), []).append(node)
    for (source, _), nodes in folded.items():
        first = specs.get(nodes[0].name)
        kind = first.kind.value if first else "operand"
        name = first.source if first and len(nodes) == 1 else source
        times = f"  x{len(nodes)}" if len(nodes) > 1 else ""
        yield f"  {namer(nodes[0])}: {shape_text(nodes[0].meta.get('val'), sizes)} = {kind} {name}{times}"


def _repeat_key(node: fx.Node) -> str | None:
    """The body a line belongs to: a region call or the getitem that takes its result apart."""
    source = node
    if op_name(node) == "getitem" and isinstance(node.args[0], fx.Node):
        source = node.args[0]
    if source.target in CALLS and isinstance(source.args[0], fx.Node):
        return str(source.args[0].target)
    return None


def _folded_calls(group: list[fx.Node], sizes: Mapping[str, str], namer: Namer) -> Iterator[str]:
    calls = [node for node in group if node.target is call_region]
    second = group.index(calls[1])
    last = group.index(calls[-1])
    for node in group[:second]:
        yield f"  {_node_line(node, sizes, namer)}"
    yield f"  ... {len(calls) - 2} more calls of {_repeat_key(calls[0])}, each with its own weights"
    for node in group[last:]:
        yield f"  {_node_line(node, sizes, namer)}"


def _node_line(node: fx.Node, sizes: Mapping[str, str], namer: Namer) -> str:
    args = list(node.args)
    name = op_name(node)
    if node.target is call_region:
        name, args = str(_repeat_key(node)), args[1:]
    elif node.target is call_loop:
        limit, trips, carried = (_literal(arg, namer) for arg in args[1:4])
        if limit == "None":
            how = "while the first is true" + ("" if trips == "None" else f", {trips} trips at a time")
        else:
            how = f"for each of {limit if trips == 'None' else f'{trips} of {limit}'} trips"
        name = f"{how}, {carried} carried: {_repeat_key(node)}"
        args = list(operands_of(node))
    shown = [_literal(arg, namer) for arg in args]
    shown += [f"{key}={_literal(value, namer)}" for key, value in node.kwargs.items()]
    engine = node.meta.get("engine")
    decided = "decided by the host" if "branch" in node.meta else None
    remark = [engine.value if isinstance(engine, Engine) else None, decided, module_of(node), source_of(node)]
    text = f"{namer(node)}: {shape_text(node.meta.get('val'), sizes)} = {name}({', '.join(shown)})"
    tail = "  ".join(part for part in remark if part)
    return f"{text}  # {tail}" if tail else text


def _literal(arg: Any, namer: Namer) -> str:
    if isinstance(arg, fx.Node):
        return namer(arg)
    if isinstance(arg, (tuple, list)):
        return f"[{', '.join(_literal(item, namer) for item in arg)}]"
    if isinstance(arg, slice):
        return ":".join("" if part is None else _literal(part, namer) for part in (arg.start, arg.stop, arg.step))
    return str(arg).removeprefix("torch.") if not isinstance(arg, str) else repr(arg)
