"""Last step of recording on the CPU: the plan becomes one straight-line Python function.

Everything the function touches is a closure variable: torch's callables, bound tensors, planned buffers and the views
of both. Its body is one line per call.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from gaudicc.runtime.cpu_calls import callee, is_view, writer
from gaudicc.runtime.cpu_checks import check_index, check_input, exactly
from gaudicc.runtime.cpu_flatten import Flat, byte_extent, is_dense
from gaudicc.runtime.cpu_fuse import rotary
from gaudicc.runtime.cpu_plan import SLICE_WRITERS, Home, Plan, written_at

_aten = torch.ops.aten
Run = Callable[..., tuple[Any, ...]]


class Emitter:
    """Writes the function of one plan.

    Attributes:
        constants: name -> object, the function's closure.
        source: the text, after `emit`.
        node_names: names of constants by placeholder, for tensors that may be replaced later.
    """

    def __init__(self, flat: Flat, plan: Plan) -> None:
        self.flat, self.plan = flat, plan
        self.constants: dict[str, Any] = {}
        self.node_names: dict[fx.Node, str] = {}
        self.source = ""
        self._arena = torch.empty(plan.arena_bytes, dtype=torch.uint8)
        self._fixed: dict[fx.Node, Any] = dict(flat.bound)
        self._names: dict[int, str] = {}
        self._reserved = {node.name for node in flat.graph.nodes}
        self._lines: list[str] = []
        self._writing = False
        self._checked: set[tuple[Any, int]] = set()

    def emit(self) -> None:
        """Fills `source` and `constants`."""
        inputs = [node.name for node in self.flat.inputs]
        for node in self.flat.inputs:
            value = node.meta["val"]
            known = (value.shape, value.dtype, value.stride())
            self._line(f"{node.name} = {self._constant(check_input)}({node.name}, {self._constant(known, 'expected')})")
        for node in self.flat.graph.nodes:
            if node.op == "call_function":
                self._call(node)
                self._free(node)
        self._finish()
        body = "\n".join(f"        {line}" for line in self._lines)
        closure = "".join(f"    {name},\n" for name in self.constants)
        self.source = f"def bind(\n{closure}):\n    def run({', '.join(inputs)}):\n{body}\n    return run\n"

    def bind(self) -> Run:
        """The function, closed over the constants as they are now."""
        space: dict[str, Any] = {}
        exec(compile(self.source, "<recording>", "exec"), space)
        run: Run = space["bind"](**self.constants)
        return run

    def _call(self, node: fx.Node) -> None:
        home, target = self.plan.home[node], node.target
        if node in self.plan.writes:
            self._write(node)
        elif target is operator.getitem and home is Home.FIXED:
            self._fixed[node] = self._fixed[node.args[0]][node.args[1]]  # type: ignore[index]
        elif home is Home.FIXED:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._fixed.__getitem__)
            self._fixed[node] = target(*args, **kwargs)  # type: ignore[operator]
        elif home is Home.BUFFER:
            self._fixed[node] = self._buffer(node)
            self._rotary(node) if target is rotary else self._line(f"{self._invoke(node, out=True)}")
        elif target is operator.getitem:
            self._line(f"{node.name} = {self._value(node.args[0])}[{node.args[1]}]")
        elif is_view(target):
            self._line(f"{node.name} = {self._view(node)}")
        else:
            self._line(f"{node.name} = {self._invoke(node)}")

    def _invoke(self, node: fx.Node, *, out: bool = False) -> str:
        """The text of a call."""
        function = callee(node.target).function
        first = node.args[0] if node.args else None
        if not isinstance(first, (fx.Node, list, tuple)):
            overload: Any = node.target
            function = getattr(overload, "_op", overload)
        kwargs = {key: value for key, value in node.kwargs.items() if key not in ("pin_memory", "layout")}
        arguments = [self._value(arg) for arg in node.args]
        arguments += [f"{key}={self._value(value)}" for key, value in kwargs.items()]
        if out:
            arguments.append(f"out={self._value(node)}")
        return f"{self._constant(function, _short_name(node.target))}({', '.join(arguments)})"

    def _view(self, node: fx.Node) -> str:
        """The cheapest text of a view of a local: a method where there is one with the op's own arguments."""
        name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
        base, *rest = node.args
        if name in ("view", "transpose", "permute", "unsqueeze", "expand", "t") and not node.kwargs:
            return f"{self._value(base)}.{name}({', '.join(self._value(arg) for arg in rest)})"
        if name == "slice" and [*map(type, rest)] == [int] * 3 and not node.kwargs:
            dim, start, end = rest
            if 0 <= start <= end <= base.meta["val"].shape[dim]:  # type: ignore[operator,union-attr]
                return f"{self._value(base)}.narrow({dim}, {start}, {end - start})"  # type: ignore[operator]
        return self._invoke(node)

    def _rotary(self, node: fx.Node) -> None:
        x, halves, cos, sines = node.args
        low, high = self._fixed[node].chunk(2, -1)
        out = [self._constant(half, f"{node.name}_{side}") for half, side in ((low, "low"), (high, "high"))]
        (x1, x2), (s1, s2) = ([self._value(n) for n in pair] for pair in (halves, sines))  # type: ignore[union-attr]
        add = self._constant(torch.Tensor.addcmul_)
        self._line(f"{self._constant(torch.mul)}({self._value(x)}, {self._value(cos)}, out={self._value(node)})")
        self._line(f"{add}({out[0]}, {x2}, {s1}, value=-1)")
        self._line(f"{add}({out[1]}, {x1}, {s2})")

    def _write(self, node: fx.Node) -> None:
        """An in-place write of state; indices are checked before the first write of all."""
        buffer = self._fixed[self.plan.writes[node]]
        self._fixed[node] = buffer
        if not self._writing:
            self._writing = True
            for other in self.plan.writes:
                self._check_indices(other, before=self.plan.order[node])
        self._check_indices(node, before=self.plan.order[node])
        if node.target in SLICE_WRITERS:
            source, *where = node.args[1:]
            part_of = _aten.slice.Tensor if node.target is _aten.slice_scatter.default else _aten.select.int
            part = self._constant(part_of(buffer, *where, **node.kwargs), f"{node.name}_part")
            self._line(f"{self._constant(torch.Tensor.copy_)}({part}, {self._value(source)})")
            return
        arguments = [self._constant(buffer, self.plan.writes[node].name)]
        arguments += [self._value(arg) for arg in node.args[1:]]
        arguments += [f"{key}={self._value(value)}" for key, value in node.kwargs.items()]
        write = self._constant(writer(node.target), f"{_short_name(node.target)}_")
        self._line(f"{write}({', '.join(arguments)})")

    def _check_indices(self, node: fx.Node, before: int) -> None:
        for index, size, low in written_at(node):
            known = self.plan.order[index] < before
            key = (index, size)
            if known and key not in self._checked and not index.meta["val"].is_floating_point():
                self._checked.add(key)
                self._line(f"{self._constant(check_index)}({self._value(index)}, {low}, {size})")

    def _finish(self) -> None:
        """Fresh copies of outputs that need one, then state that is copied, then the return."""
        returned = []
        for index, out in enumerate(self.flat.outputs):
            if index in self.flat.state.values():
                continue
            returned.append(self._output(index, out) if isinstance(out, fx.Node) else self._value(out))
        moves = [(self._value(buffer), self._snapshot(new)) for buffer, new in self.plan.copies.items()]
        for buffer, new in moves:
            self._line(f"{self._constant(torch.Tensor.copy_)}({buffer}, {new})")
        self._line(f"return ({''.join(f'{name}, ' for name in returned)})")

    def _snapshot(self, new: Any) -> str:
        """The new value of a state buffer, copied first if it lives in state that is about to change."""
        if isinstance(new, fx.Node) and self.plan.root[new] in self.flat.state:
            name = f"{new.name}_old"
            self._line(f"{name} = {self._constant(torch.clone)}({self._value(new)})")
            return name
        return self._value(new)

    def _output(self, index: int, out: fx.Node) -> str:
        expected = self.flat.expected[index]
        if index in self.plan.kept and self.plan.home[out] is not Home.LOCAL:
            return self._value(out)
        name = f"output_{index}"
        size, stride = tuple(expected.shape), expected.stride()
        if index in self.plan.kept:
            self._line(f"{name} = {self._constant(exactly)}({self._value(out)}, {size}, {stride})")
        elif is_dense(expected) and out.meta["val"].stride() == stride:
            self._line(f"{name} = {self._constant(torch.clone)}({self._value(out)})")
        else:
            self._line(f"{name} = {self._constant(exactly)}({self._value(out)}, {size}, {stride}, copy=True)")
        return name

    def _free(self, node: fx.Node) -> None:
        """Drops locals that `node` read last."""
        kept = set(self.flat.graph.output_node().all_input_nodes)
        for source in {*node.all_input_nodes, node}:
            if self.plan.home.get(source) is not Home.LOCAL or source.op != "call_function" or source in kept:
                continue
            if max((self.plan.order[user] for user in source.users), default=-1) <= self.plan.order[node]:
                self._line(f"del {source.name}")

    def _buffer(self, node: fx.Node) -> torch.Tensor:
        value = node.meta["val"]
        start = self.plan.offsets[node]
        raw = self._arena[start : start + byte_extent(value)].view(value.dtype)
        return raw.as_strided(value.shape, value.stride())

    def _value(self, value: Any) -> str:
        """The text of an argument."""
        if isinstance(value, fx.Node):
            if self.plan.home[value] is Home.LOCAL:
                return value.name
            name = self._constant(self._fixed[value], value.name)
            if value in self.flat.bound:
                self.node_names[value] = name
            return name
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(self._value(item) for item in value)}]"
        plain = isinstance(value, (bool, int, str, type(None))) or (isinstance(value, float) and math.isfinite(value))
        return repr(value) if plain else self._constant(value, "constant")

    def _constant(self, value: Any, name: str | None = None) -> str:
        """The closure variable that holds an object."""
        key = id(value)
        if key not in self._names:
            wanted = name or str(getattr(value, "__name__", "constant"))
            unique, count = wanted, 0
            while unique in self.constants or (unique in self._reserved and unique != name):
                count += 1
                unique = f"{wanted}_{count}"
            self._names[key] = unique
            self.constants[unique] = value
        return self._names[key]

    def _line(self, text: str) -> None:
        self._lines.append(text)


def _short_name(target: Any) -> str:
    """What a call is named in the source: `aten_add` for `aten.add.Tensor`, never as a node is."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.replace("::", "_")
    return f"cpu_{getattr(target, '__name__', 'function')}"
