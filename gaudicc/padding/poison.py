"""The oracle: runs a padded program with poison in every pad, node by node, and compares what is valid.

After each op, pads that are claimed garbage are overwritten with NaN, infinity or extreme integers, those claimed
finite with large numbers, and constants are looked up. Nothing valid may change by a bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.errors import NumericsError
from gaudicc.padding.host import HostPadding
from gaudicc.padding.layout import Content, Kind, Pads
from gaudicc.program import InputKind, OutputKind, Program, call_region, output_of, where
from gaudicc.verify import differs


class Poison(Enum):
    """What is written into pads: the float, the value for finite claims, the end of the integers' range, the bool."""

    NAN = (float("nan"), 3e3, "max", True)
    POSITIVE = (float("inf"), 3e3, "max", False)
    NEGATIVE = (float("-inf"), -3e3, "min", True)

    def of(self, dtype: torch.dtype, *, finite: bool) -> Any:
        """The poison for a dtype."""
        number, large, end, flag = self.value
        if dtype is torch.bool:
            return flag
        if dtype.is_floating_point or dtype.is_complex:
            return large if finite else number
        return getattr(torch.iinfo(dtype), end)


@dataclass
class Runner:
    """Runs the graphs of a padded symbolic program at chosen sizes.

    Attributes:
        symbols: symbol -> physical size.
        lengths: symbol -> logical size.
        poison: what to write into pads; None runs as the device would.
    """

    symbols: Mapping[str, int]
    lengths: Mapping[str, int]
    poison: Poison | None

    def run(self, module: fx.GraphModule, feed: Iterable[Any]) -> tuple[Any, ...]:
        """The outputs of a graph on these values of its placeholders."""
        known: dict[fx.Node, Any] = {}
        values = iter(feed)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(values)
            elif node.op == "get_attr":
                known[node] = getattr(module, str(node.target))
            elif node.op == "output":
                continue
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = (
                    self.run(args[0], args[1:]) if node.target is call_region else node.target(*args, **kwargs)
                )
                if self.poison is not None and isinstance(known[node], torch.Tensor):
                    known[node] = self._poisoned(node, known[node])
        results: Any = fx.map_arg(output_of(module.graph).args[0], known.__getitem__)
        return tuple(results)

    def _poisoned(self, node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        pads = node.meta.get("pads")
        if not isinstance(pads, Pads) or not pads.padded_dims or not value.numel():
            return value
        if pads.iota is not None:
            return self._assert_iota(node, value, pads.iota)
        factors = [factor for dim in pads.dims for factor in dim]
        shape = [_at(factor.size, self.symbols) for factor in factors]
        outside = []
        for i, factor in enumerate(factors):
            if factor.content is not None:
                view = [1] * len(shape)
                view[i] = shape[i]
                beyond = (torch.arange(shape[i]) >= _at(factor.size, self.lengths)).view(view).expand(shape)
                outside.append((factor.content, beyond))
        count = torch.stack([beyond for _, beyond in outside]).sum(0)
        changed = value.reshape(shape).clone()
        free = count > 1
        for content, beyond in outside:
            alone = beyond & (count == 1)
            if content.kind is Kind.CONSTANT:
                held = beyond if content.strong else alone
                self._assert_constant(node, changed, held, content)
                free = free & ~beyond if content.strong else free
            else:
                changed = self._write(changed, alone, finite=content.kind is Kind.FINITE)
        changed = self._write(changed, free, finite=False)
        return value.clone().copy_(changed.reshape(value.shape))

    def _write(self, value: torch.Tensor, at: torch.Tensor, *, finite: bool) -> torch.Tensor:
        assert self.poison is not None, "asked for in poison runs only"
        poison = torch.full((), self.poison.of(value.dtype, finite=finite), dtype=value.dtype)
        return torch.where(at, poison, value)

    def _assert_iota(self, node: fx.Node, value: torch.Tensor, dim: int) -> torch.Tensor:
        view = [1] * value.dim()
        view[dim] = -1
        if not bool((value == torch.arange(value.shape[dim]).view(view)).all()):
            raise NumericsError(f"{node.name} is claimed to hold its positions", where=where(node, "the poison run"))
        return value

    def _assert_constant(self, node: fx.Node, value: torch.Tensor, at: torch.Tensor, content: Content) -> None:
        held = value[at]
        expected = torch.full((), content.value, dtype=value.dtype)
        wrong = held[held != expected]  # -0.0 is a 0: no rule tells them apart
        if wrong.numel():
            found = wrong[:3].tolist()
            raise NumericsError(
                f"pads of {node.name} are claimed to hold {content.value}, they hold {found}",
                where=where(node, "the poison run"),
                hint="a fault of gaudicc: please report it",
            )


_KNOWN: dict[Any, int] = {}


def _at(size: sympy.Expr, symbols: Mapping[str, int]) -> int:
    if size.is_Integer:
        return int(size)
    key = (size, tuple(symbols.items()))
    if key not in _KNOWN:
        _KNOWN[key] = int(size.xreplace({symbol: sympy.Integer(symbols[str(symbol)]) for symbol in size.free_symbols}))
    return _KNOWN[key]


def check(
    program: Program,
    original: Program,
    calls: Iterable[tuple[Mapping[str, torch.Tensor], Mapping[str, int]]],
    *,
    poisons: Iterable[Poison] = tuple(Poison),
) -> None:
    """Proves by trial, over a sequence of calls that share state, that pads do not leak.

    Args:
        program: after the pass `pad`, with symbolic sizes.
        original: the program before it.
        calls: per call the user inputs (placeholder name -> tensor of logical size) and the bucket (dim name -> size).
        poisons: what to write into pads; each is a run of its own over all calls.

    Raises:
        NumericsError: a valid value differs: by a bit from the run with zero pads, or by more than the dtype's rounding
            from the program without padding.
    """
    host = HostPadding(program)
    names = {dim.name: dim.symbol for dim in program.dimensions}
    kinds = tuple(poisons)
    states: dict[Any, dict[str, torch.Tensor]] = {kind: {} for kind in (*kinds, None, "original")}
    for number, (inputs, sizes) in enumerate(calls):
        lengths = {dim.name: inputs[dim.positions[0][0]].shape[dim.positions[0][1]] for dim in program.dimensions}
        feed = host.pad(inputs, sizes, lengths)
        with torch.no_grad():
            truth = original.root(*_feed(original, inputs, states["original"]))
            _keep_state(original, truth, states["original"])
            clean: tuple[Any, ...] = ()
            for kind in (None, *kinds):
                runner = Runner(
                    {names[name]: size for name, size in sizes.items()},
                    {names[name]: size for name, size in lengths.items()},
                    kind,
                )
                raw = runner.run(program.root, _feed(program, feed, states[kind]))
                _keep_state(program, raw, states[kind])
                results = host.slice(raw, sizes, lengths)
                if kind is None:
                    clean = results
                    _compare(truth, results, f"call {number} at {lengths} in {sizes} against no padding", bitwise=False)
                else:
                    _compare(
                        clean, results, f"call {number} at {lengths} in {sizes} with {kind.name} in pads", bitwise=True
                    )


def _feed(
    program: Program, inputs: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    own = {
        spec.name: state[spec.source]
        for spec in program.inputs
        if spec.kind is InputKind.STATE and spec.source in state
    }
    return program.feed({**inputs, **own})


def _keep_state(program: Program, results: tuple[Any, ...], state: dict[str, torch.Tensor]) -> None:
    for spec, value in zip(program.outputs, results, strict=True):
        if spec.kind is OutputKind.STATE:
            state[str(spec.target)] = value


def _compare(expected: tuple[Any, ...], given: tuple[Any, ...], when: str, *, bitwise: bool) -> None:
    for index, (a, b) in enumerate(zip(expected, given, strict=True)):
        if difference := differs(a, b, bitwise=bitwise):
            raise NumericsError(f"output {index} differs: {difference}", where=None, hint=when)
