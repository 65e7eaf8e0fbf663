"""`torch.compile(backend="hpu_backend")`: AOTAutograd, placement, clusters that each are a recipe, the rest in eager mode.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `dynamo/compile_backend/`. Of the vendor's passes only placement, partitioning
and the log lines are emulated; a cluster's nodes run one by one on the CPU and count as one recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator

from gaudicc.emulator import flexible, placement, traced_ops, tracing
from gaudicc.emulator.emulation import current
from gaudicc.emulator.surface import compile_config as config
from gaudicc.emulator.surface.analyzer import FxGraphAnalyzer, logger
from gaudicc.errors import DeviceError

Compiled = Callable[..., Any]


def register() -> None:
    """Make the backend known to torch.compile, once per process."""
    from torch._dynamo import register_backend

    tracing.prepare()
    traced_ops.register()
    register_backend(hpu_backend)


@cache
def register_refusal() -> None:
    """In lazy mode the name is known too, so that a function can be decorated; nothing says what calling it does there."""
    from torch._dynamo import register_backend

    def refuse(*_: Any, **__: Any) -> Compiled:
        raise DeviceError(
            "hpu_backend is not emulated in lazy mode: Intel documents it for eager mode only",
            hint="set PT_HPU_LAZY_MODE=0, or call the function without torch.compile",
        )

    register_backend(refuse, name="hpu_backend")


def hpu_backend(graph_module: fx.GraphModule, example_inputs: Sequence[Tensor], **kwargs: Any) -> Compiled:
    """Compile what dynamo captured.

    Args:
        graph_module: the graph.
        example_inputs: its inputs, fake.
        **kwargs: `options`: values of `compile_backend.config` for this graph.
    """
    from torch._dynamo.backends.common import aot_autograd

    options = dict(kwargs.get("options") or {})

    def inner(is_training: bool, is_backward: bool) -> Compiled:
        run = partial(compile_graph, is_training=is_training, is_backward=is_backward)
        patched: Compiled = config.patch(options)(run)
        return patched

    with config.patch(options), traced_ops.as_the_release_traces():
        make: Any = aot_autograd(
            fw_compiler=inner(True, False),
            bw_compiler=inner(True, True),
            inference_compiler=inner(False, False),
            decompositions=placement.decompositions(),
            keep_inference_input_mutations=True,
        )
        compiled: Compiled = make(graph_module, example_inputs)
    return compiled


def compile_graph(
    graph: fx.GraphModule, example_inputs: Sequence[Any], is_training: bool = False, is_backward: bool = False
) -> Compiled:
    """Place, partition and compile one graph.

    Raises:
        RuntimeError: a node needs eager mode, and `use_eager_fallback` is off.
    """
    eager = _place(graph)
    fused = placement.partition(graph, eager)
    for name, module in list(fused.named_children()):
        if name.startswith("fused_") and isinstance(module, fx.GraphModule):
            logger.info(placement.jit_ir(module))
            setattr(fused, name, Cluster(module))
    FxGraphAnalyzer.see(fused)
    _compile_branches(fused)
    fused.recompile()
    return _boxed(fused)


class Cluster(nn.Module):
    """Nodes that run as one recipe."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.inner = graph

    def forward(self, *args: Any) -> Any:
        """Run it."""
        with current().cluster():
            return self.inner(*args)


def _place(graph: fx.GraphModule) -> set[fx.Node]:
    eager: set[fx.Node] = set()
    refused: list[str] = []
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        fallback = placement.needs_eager(node)
        if placement.on_device(node):
            logger.info(f"Node: {node.name} requires fallback: {fallback}")
        if fallback:
            eager.add(node)
            if placement.on_device(node) and not isinstance(placement.made_by(node).target, HigherOrderOperator):
                refused.append(f"{node.name} ({placement.op_base(node)})")
    if refused and not (config.value("use_eager_fallback") and current().settings.eager_fallback):
        raise RuntimeError(f"eager fallback is off, and these nodes need it: {', '.join(refused)}")
    return eager


def _compile_branches(graph: fx.GraphModule) -> None:
    """Bodies of higher-order ops are compiled too, and run by a plain function: torch has no rule for device tensors there.

    Those of `flex_attention` are left to it: it calls them on one score at a time, mapped over all.
    """
    ops = torch.ops.higher_order
    runners = {
        ops.cond: _cond,
        getattr(ops, "hints_wrapper", None): _hints,
        getattr(ops, "with_effects", None): _in_order,
    }
    for node in graph.graph.nodes:
        node.target = flexible.DENSE.get(node.target, node.target)
        runner = runners.get(node.target) if isinstance(node.target, HigherOrderOperator) else None
        if runner is None:
            continue
        for read in [each for each in node.all_input_nodes if each.op == "get_attr"]:
            body = getattr(graph, str(read.target))
            if isinstance(body, fx.GraphModule):
                setattr(graph, str(read.target), _Branch(compile_graph(body, ())))
        node.target = runner


class _Branch(nn.Module):
    """A compiled body of a higher-order op."""

    def __init__(self, compiled: Compiled) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, *args: Any) -> Any:
        """Run it."""
        return self.compiled(list(args))


def _cond(predicate: Any, true: _Branch, false: _Branch, operands: Sequence[Any]) -> Any:
    return true(*operands) if bool(predicate) else false(*operands)


def _hints(body: _Branch, args: Sequence[Any], kwargs: Any, hints: Any = None) -> Any:
    return body(*args)


def _in_order(token: Any, op: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """An op that must keep its place, such as a check that raises."""
    result = op(*args, **kwargs)
    return (token, *result) if isinstance(result, tuple) else (token, result)


def _boxed(graph: fx.GraphModule) -> Compiled:
    def run(args: list[Any]) -> Any:
        given = list(args)
        args.clear()
        return graph(*given)

    run.__dict__["_boxed_call"] = True
    return run
