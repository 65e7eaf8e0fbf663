"""Bodies that a rewrite makes: computed once in the text, called for every part of its operands."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import fx

from gaudicc.fake_results import unshared
from gaudicc.graph_module import LazyGraphModule
from gaudicc.nodes import call_region, outputs_of, val
from gaudicc.rewriter import Rewriter


def new_body(
    build: Callable[..., torch.Tensor], operands: Sequence[fx.Node], like: fx.Node
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """Traces a function to the body of a region.

    Args:
        build: plain PyTorch, from one tensor per operand to a tensor.
        operands: what the first call passes; those of the others have the same shapes, strides and dtypes.
        like: the node whose source line the body's nodes carry.

    Returns:
        The body, and the nodes that it computes.
    """
    graph = fx.Graph()
    inputs = [graph.placeholder(f"operand_{i}") for i in range(len(operands))]
    for node, operand in zip(inputs, operands, strict=True):
        node.meta = {"val": val(operand)}
    end = graph.output((inputs[0],))
    end.meta = {key: value for key, value in like.meta.items() if key != "val"}
    rewriter = Rewriter(LazyGraphModule({}, graph))
    end.args = ((rewriter.inline(build, *inputs, like=end),),)
    rewriter.finish()
    return rewriter.module, [node for node in graph.nodes if node.op == "call_function"]


def add_body(rewriter: Rewriter, body: fx.GraphModule, name: str, taken: Iterable[str]) -> str:
    """Makes a body known to the graph that will call it.

    Args:
        rewriter: of that graph.
        body: what is called.
        name: what to call it.
        taken: names of the program's graphs, of which no two are alike.

    Returns:
        The name, with a number if another graph has it already.
    """
    others = set(taken)
    free = next(each for each in (name, *(f"{name}_{i}" for i in range(2, len(others) + 3))) if each not in others)
    rewriter.module.add_submodule(free, body)
    return free


def call_body(rewriter: Rewriter, name: str, operands: Sequence[fx.Node], like: fx.Node) -> fx.Node:
    """Calls a body with one result.

    Args:
        rewriter: of a graph that knows the body.
        name: the body's.
        operands: one for each of its placeholders.
        like: the node before which the call is made, and whose source line it carries.

    Returns:
        The result.
    """
    body: fx.GraphModule = getattr(rewriter.module, name)
    (result,) = outputs_of(body.graph)
    with rewriter.graph.inserting_before(like):
        call = rewriter.graph.call_function(call_region, (rewriter.graph.get_attr(name), *operands))
        item = rewriter.graph.call_function(operator.getitem, (call, 0))
    shared = {key: value for key, value in like.meta.items() if key in ("stack_trace", "nn_module_stack")}
    call.meta = {"val": (unshared(val(result)),), **shared}
    item.meta = {"val": call.meta["val"][0], **shared}
    rewriter.modified = True
    return item
