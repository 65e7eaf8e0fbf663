"""What a CUDA graph launches: the calls of a flat graph, made ready to be captured.

Every call runs on the GPU, whatever device it names: the host's part of a segment (lengths, their arithmetic) too, for
a value computed on the host would be frozen into the graph. State is written in place where nothing reads it later.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gaudicc.errors import GaudiccError, LoweringError
from gaudicc.kernels import attention
from gaudicc.nodes import op_name, where
from gaudicc.runtime.cpu_calls import WRITERS, is_view
from gaudicc.runtime.cpu_flatten import Flat, byte_extent
from gaudicc.runtime.cpu_plan import SLICE_WRITERS, Plan
from gaudicc.runtime.cuda_semantic import FASTER, bias_of

_HOST_READS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


def refuse_host_reads(flat: Flat) -> None:
    """Refuses ops whose result the host must read before it can go on: that would break a capture.

    Raises:
        LoweringError: names the first of them.
    """
    for node in flat.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and _HOST_READS.intersection(node.target.tags):
            raise LoweringError(
                f"{op_name(node)} makes the host wait for a value, which a CUDA graph cannot record",
                where=where(node, "record"),
                hint="keep the full size and mask instead of selecting, or pass on_unsupported='host'",
            )


def make_ready(flat: Flat, plan: Plan, place: torch.device) -> None:
    """Rewrites the calls in place: onto the GPU, with the fastest form of semantic ops, and with writes of state."""
    _share_biases(flat)
    for node in flat.graph.nodes:
        if node.op != "call_function":
            continue
        node.meta["op"] = op_name(node)
        if node in plan.writes:
            if node.target in SLICE_WRITERS:
                node.args, node.target = (node.target, *node.args), _write_part
            else:
                node.target = WRITERS[node.target]
            continue
        node.target = FASTER.get(node.target, node.target)
        node.args = pytree.tree_map_only(torch.device, lambda _: place, node.args)
        kwargs = {name: value for name, value in node.kwargs.items() if name != "pin_memory"}
        if "device" in kwargs or _makes_tensors(node):
            kwargs["device"] = place
        node.kwargs = kwargs


def _share_biases(flat: Flat) -> None:
    """Makes one bias of each mask, where torch's kernels would make one for every layer."""
    made: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
    for node in [node for node in flat.graph.nodes if node.target is attention]:
        query, mask = node.args[0], node.args[3]
        if mask is None or mask.meta["val"].dtype != torch.bool:
            continue
        key = (mask, query.meta["val"].dtype)
        if key not in made:
            with flat.graph.inserting_before(node):
                made[key] = flat.graph.call_function(bias_of, key)
            made[key].meta = {**mask.meta, "val": mask.meta["val"].to(key[1])}
        node.update_arg(3, made[key])


def _makes_tensors(node: fx.Node) -> bool:
    """Whether a call takes no tensor, so that the device of its result is the default one."""
    if node.all_input_nodes or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(argument.name == "device" for argument in node.target._schema.arguments)


def warm_up(flat: Flat, bound: Mapping[fx.Node, Tensor], place: torch.device) -> None:
    """Runs each distinct call once, on ones: no index is out of range then, and neither state nor inputs are touched.

    Args:
        flat: after `make_ready`.
        bound: placeholder -> tensor on the GPU.
        place: the GPU.

    Raises:
        LoweringError: a call fails; names it.
    """
    weights = {node: tensor for node, tensor in bound.items() if node not in flat.state}
    seen: set[str] = set()

    def scratch(node: fx.Node) -> Any:
        return weights[node] if node in weights else _ones(node.meta["val"], place)

    for node in flat.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem or is_view(node.target):
            continue
        key = repr((node.target, fx.map_arg((node.args, node.kwargs), _form)))
        if key not in seen:
            seen.add(key)
            with _naming(node):
                args, kwargs = fx.map_arg((node.args, node.kwargs), scratch)
                node.target(*args, **kwargs)


def _form(node: fx.Node) -> Any:
    value = node.meta["val"]
    return (tuple(value.shape), value.stride(), str(value.dtype)) if isinstance(value, Tensor) else repr(value)


def _ones(value: Any, place: torch.device) -> Any:
    """Ones where they are no index; 0 and False otherwise."""
    if not isinstance(value, Tensor):
        return value
    counts = value.dtype.is_floating_point or value.dtype.is_complex
    flat = torch.full(
        (byte_extent(value) // value.element_size(),), 1 if counts else 0, dtype=value.dtype, device=place
    )
    return flat.as_strided(value.shape, value.stride())


class Launcher(fx.Interpreter):
    """Launches all calls of a flat graph in order; each value is freed after its last use.

    Args:
        flat: after `make_ready`.
        values: placeholder -> tensor on the GPU, for all of them.
    """

    def __init__(self, flat: Flat, values: Mapping[fx.Node, Tensor]) -> None:
        super().__init__(nn.Module(), graph=flat.graph)
        self.extra_traceback = False
        self._values = dict(values)

    def launch(self) -> tuple[Any, ...]:
        """Launches everything.

        Returns:
            The outputs of the flat graph.

        Raises:
            LoweringError: a call fails; names it.
        """
        outputs: tuple[Any, ...] = self.run(initial_env=dict(self._values))
        return outputs

    def run_node(self, n: fx.Node) -> Any:
        """See `fx.Interpreter.run_node`."""
        with _naming(n):
            return super().run_node(n)


@contextmanager
def _naming(node: fx.Node) -> Iterator[None]:
    """Makes what is raised inside an error that names the node and the user's line."""
    try:
        yield
    except GaudiccError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        place = replace(where(node, "record"), op=node.meta["op"])
        raise LoweringError(f"{place.op} cannot be recorded: {first}", where=place) from error


def _write_part(part_of: Any, buffer: Tensor, source: Tensor, *place: Any, **options: Any) -> Tensor:
    """`slice_scatter` or `select_scatter` in place."""
    view = _PARTS[part_of](buffer, *place, **options)
    view.copy_(source)
    return buffer


_PARTS = {
    torch.ops.aten.slice_scatter.default: torch.ops.aten.slice.Tensor,
    torch.ops.aten.select_scatter.default: torch.ops.aten.select.int,
}
