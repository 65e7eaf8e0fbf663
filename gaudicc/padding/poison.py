"""The oracle: runs a padded program with poison in every pad, node by node, and compares what is valid.

After each op, pads that are claimed garbage are overwritten with NaN, infinity or extreme integers, those claimed
finite with large numbers, and constants are looked up. Nothing valid may change by a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.errors import NumericsError
from gaudicc.nodes import CALLS, call_loop, call_region, output_of, where
from gaudicc.padding.held import with_zeros
from gaudicc.padding.host import HostPadding
from gaudicc.padding.layout import Content, Kind, Pads
from gaudicc.program import InputKind, OutputKind, Program
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
        poison: what to write into pads; None leaves them as they are.
    """

    symbols: Mapping[str, int]
    lengths: Mapping[str, int]
    poison: Poison | None

    def run(self, module: fx.GraphModule, feed: Iterable[Any]) -> tuple[Any, ...]:
        """The outputs of a graph on these values of its placeholders."""
        known: dict[fx.Node, Any] = {}
        readers = {node: len(node.users) for node in module.graph.nodes}  # what is read no more is let go
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
                known[node] = self._call(node, args) if node.target in CALLS else node.target(*args, **kwargs)
                if isinstance(known[node], torch.Tensor):
                    known[node] = self._poisoned(node, known[node])
                for arg in node.all_input_nodes:
                    readers[arg] -= 1
                    if not readers[arg]:
                        del known[arg]
        results: Any = fx.map_arg(output_of(module.graph).args[0], known.__getitem__)
        return tuple(results)

    def _call(self, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if node.target is call_region:
            return self.run(args[0], args[1:])
        body, limit, trips, *rest = args
        if limit is not None and not int(limit if trips is None else trips):
            return call_loop(*args)
        return call_loop(lambda *given: self.run(body, given), limit, trips, *rest)  # type: ignore[arg-type]

    def _poisoned(self, node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        pads = node.meta.get("pads")
        if not isinstance(pads, Pads) or not pads.padded_dims or not value.numel():
            return value
        if pads.iota is not None:
            return self._assert_iota(node, value, pads.iota)
        if self.poison is None:
            return value.clone()  # laid out as with poison, for kernels may round by layout
        if pads.uniform is not None:
            everywhere = torch.ones_like(value, dtype=torch.bool)
            self._assert_constant(node, value, everywhere, Content(Kind.CONSTANT, pads.uniform))
            return value.clone()
        factors = [factor for dim in pads.dims for factor in dim]
        shape = [_at(factor.size, self.symbols) for factor in factors]
        outside = []
        for i, factor in enumerate(factors):
            if factor.content is not None:
                view = [1] * len(shape)
                view[i] = shape[i]
                place = torch.arange(shape[i], device=value.device)
                beyond = (place >= _at(factor.size, self.lengths)).view(view).expand(shape)
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
        if not bool((value == torch.arange(value.shape[dim], device=value.device).view(view)).all()):
            raise NumericsError(f"{node.name} is claimed to hold its positions", where=where(node, "the poison run"))
        return value

    def _assert_constant(self, node: fx.Node, value: torch.Tensor, at: torch.Tensor, content: Content) -> None:
        held = value[at]
        expected = torch.full((), content.value, dtype=value.dtype)
        same = held.isnan() if bool(expected.isnan()) else held == expected  # -0.0 is a 0: no rule tells them apart
        wrong = held[~same]
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
    static: Callable[[Mapping[str, int]], Program] | None = None,
) -> None:
    """Proves by trial, over a sequence of calls that share state, that pads do not leak.

    Args:
        program: after the pass `pad`, with symbolic sizes.
        original: the program before it.
        calls: per call the user inputs (placeholder name -> tensor of logical size) and the bucket (dim name -> size).
        poisons: what to write into pads; each is a run of its own over all calls.
        static: gives the static program of a bucket, which is run too, with zeros in the pads.

    Raises:
        NumericsError: a valid value differs: by a bit from the run with zero pads, or by more than the dtype's rounding
            from the program without padding.
    """
    host = HostPadding(program)
    runs = {kind: _Run(program, host, kind) for kind in (None, *poisons)}
    bare, recorded = _Run(original, None, None), _Run(program, host, None)
    for number, (inputs, sizes) in enumerate(calls):
        lengths = {dim.name: inputs[dim.positions[0][0]].shape[dim.positions[0][1]] for dim in program.dimensions}
        when = f"call {number} at {lengths} in {dict(sizes)}"
        with torch.no_grad():
            clean = runs[None].call(inputs, sizes, lengths)
            _compare(bare.call(inputs, lengths, lengths), clean, f"{when} against no padding", bitwise=False)
            for kind in runs:
                if kind is not None:
                    poisoned = runs[kind].call(inputs, sizes, lengths)
                    _compare(clean, poisoned, f"{when} with {kind.name} in pads", bitwise=True)
            if static is not None:
                results = recorded.call(inputs, sizes, lengths, static(sizes))
                _compare(clean, results, f"{when}, as recorded", bitwise=False)


class _Run:
    """One sequence of calls with state of its own."""

    def __init__(self, program: Program, host: HostPadding | None, poison: Poison | None) -> None:
        self.program = program
        self.host = host
        self.poison = poison
        self.state: dict[str, torch.Tensor] = {}

    def call(
        self,
        inputs: Mapping[str, torch.Tensor],
        sizes: Mapping[str, int],
        lengths: Mapping[str, int],
        static: Program | None = None,
    ) -> tuple[Any, ...]:
        """All outputs, the new state last; of the logical sizes."""
        program = self.program if static is None else static
        feed = dict(inputs) if self.host is None else self.host.pad(inputs, sizes, lengths)
        symbols = {dim.symbol: sizes[dim.name] for dim in self.program.dimensions}
        logical = {dim.symbol: lengths[dim.name] for dim in self.program.dimensions}
        feed |= {
            spec.name: self.state[spec.source]
            for spec in program.inputs
            if spec.kind is InputKind.STATE and spec.source in self.state
        }
        feed |= with_zeros(self.program, self.state, lengths)
        raw = Runner(symbols, logical, self.poison).run(program.root, program.feed(feed))
        kinds = [spec.kind for spec in program.outputs]
        returned = tuple(value for value, kind in zip(raw, kinds, strict=True) if kind is not OutputKind.STATE)
        written = {
            str(spec.target): value
            for spec, value in zip(program.outputs, raw, strict=True)
            if spec.kind is OutputKind.STATE
        }
        self.state.update(written)
        known = returned if self.host is None else self.host.slice(returned, sizes, lengths)
        return (*_cut(self.program, known), *written.values())


def _cut(program: Program, results: tuple[Any, ...]) -> tuple[Any, ...]:
    """The results up to the lengths that came with them, as the host hands them on."""
    specs = [spec for spec in program.outputs if spec.kind is not OutputKind.STATE]
    users = [place for place, spec in enumerate(specs) if spec.kind is OutputKind.USER]
    cut = list(results)
    for spec, length in zip(specs, results, strict=True):
        if spec.kind is OutputKind.LENGTH:
            output, dim = map(int, str(spec.target).split(":"))
            cut[users[output]] = cut[users[output]].narrow(dim, 0, int(length))
    return tuple(cut)


def _compare(expected: tuple[Any, ...], given: tuple[Any, ...], when: str, *, bitwise: bool) -> None:
    for index, (a, b) in enumerate(zip(expected, given, strict=True)):
        if difference := differs(a, b, bitwise=bitwise):
            raise NumericsError(f"output {index} differs: {difference}", where=None, hint=when)
