"""Brute force: an op on every split of valid and pad, poisoned, against the op without any pads.

A case is a function of tensors and the shapes of these: `b`, `s`, `t` are dynamic (`s:4`: at least 4), numbers fixed;
the last letter makes floats (f), integers below 4 (i) or bools (m). Nothing here looks at the rules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.errors import NumericsError
from gaudicc.padding import certificate_of
from gaudicc.padding.poison import check
from gaudicc.padding.rules.rule import Rule
from gaudicc.padding.rules.table import rule_of
from gaudicc.passes import CleanUp, Decompose, RecognizeAttention
from gaudicc.passes.pad import Pad
from gaudicc.pipeline import Pipeline
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.verify import Level

BUCKET = {"b": 3, "s": 6, "t": 5}
Call = tuple[dict[str, torch.Tensor], dict[str, int]]


def tensors(shapes: tuple[str, ...], sizes: dict[str, int], seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in shapes:
        *dims, kind = shape.split()
        given = [sizes[dim[0]] if dim[0] in sizes else int(dim) for dim in dims]
        if kind == "f":
            made.append(torch.randn(given, generator=generator))
        elif kind == "m":
            made.append(torch.rand(given, generator=generator) < 0.3)
        else:
            made.append(torch.randint(0, 4, given, generator=generator))
    return tuple(made)


def low_of(shapes: tuple[str, ...], dim: str) -> int:
    """The least length of a dim."""
    return max((int(d[2:]) for shape in shapes for d in shape.split() if d.startswith(f"{dim}:")), default=1)


def captured(function: Callable[..., Any], shapes: tuple[str, ...], composites: bool) -> Program:
    names = [f"arg{i}" for i in range(len(shapes))]
    scope: dict[str, Any] = {"function": function}
    exec(f"def forward(self, {', '.join(names)}):\n    return function({', '.join(names)})", scope)
    module = type("Model", (torch.nn.Module,), {"forward": scope["forward"]})().eval()
    dims = {letter: Dim(letter, min=low_of(shapes, letter), max=64) for letter in BUCKET}
    dynamic = {
        name: {i: dims[dim[0]] for i, dim in enumerate(shape.split()[:-1]) if dim[0] in dims}
        for name, shape in zip(names, shapes, strict=True)
    }
    program = capture(module, tensors(shapes, BUCKET), dynamic_shapes=dynamic)
    program.target = load_target("gaudi3")
    passes = (CleanUp(),) if composites else (RecognizeAttention(), Decompose(), CleanUp())
    return Pipeline(passes).run(program, level=Level.STRUCTURE)[0]


def calls(program: Program, shapes: tuple[str, ...], limit: int = 24) -> Iterator[Call]:
    used = {dim.name for dim in program.dimensions}
    ranges = [range(low_of(shapes, d), BUCKET[d] + 1) if d in used else [BUCKET[d]] for d in BUCKET]
    splits = list(itertools.product(*ranges))
    step = -(-len(splits) // limit) | 1  # an odd stride meets every length of every dim
    for i, lengths in enumerate(splits):
        if i % step == 0:
            given = tensors(shapes, dict(zip(BUCKET, lengths, strict=True)), seed=i)
            by_source = {f"arg{n}": tensor for n, tensor in enumerate(given)}
            inputs = {spec.name: by_source[spec.source] for spec in program.user_inputs()}
            yield inputs, {dim.name: BUCKET[dim.name] for dim in program.dimensions}


def masks_inserted(program: Program, padded: Program) -> list[str]:
    """The nodes that keep a tensor where it is valid and a constant elsewhere, as padding added them to the root."""
    before = {node.name for node in program.root.graph.nodes}
    where = [node for node in padded.root.graph.nodes if node.target is torch.ops.aten.where.self]
    return [node.name for node in where if node.name not in before and node.args[2].meta["val"].dim() == 0]


def mutated(padded: Program, name: str, how: str) -> Program:
    """The program with one mask deleted or negated, and no claim made on it."""
    mutant = padded.copy()
    node = next(node for node in mutant.root.graph.nodes if node.name == name)
    mask, kept, value = node.args
    node.args = (mask, kept, kept) if how == "deleted" else (mask, value, kept)
    node.meta.pop("pads", None)
    mutant.root.recompile()
    return mutant


def survives(mutant: Program, program: Program, shapes: tuple[str, ...]) -> bool:
    try:
        check(mutant, program, calls(program, shapes))
    except (NumericsError, IndexError, RuntimeError):
        return False
    return True


@pytest.fixture
def brute_force(monkeypatch: pytest.MonkeyPatch) -> Callable[..., set[Any]]:
    """Checks one case, in strict mode too, and that each mask is needed; gives the ops whose rules were asked."""
    asked: set[Any] = set()

    def ask(op: Any) -> Rule | None:
        asked.add(op)
        return rule_of(op)

    monkeypatch.setattr("gaudicc.padding.analysis.rule_of", ask)

    def prove(function: Callable[..., Any], *shapes: str, composites: bool = False) -> set[Any]:
        program = captured(function, shapes, composites)
        padded = Pad().run(program.copy()).program
        check(padded, program, calls(program, shapes))
        mutants = ((name, how) for name in masks_inserted(program, padded) for how in ("deleted", "negated"))
        survivors = [mutant for mutant in mutants if survives(mutated(padded, *mutant), program, shapes)]
        assert not survivors
        if certificate_of(padded).finite:
            strict = Pad(strict=True).run(program.copy()).program
            assert not certificate_of(strict).finite
            check(strict, program, calls(program, shapes, limit=6))
        return asked

    return prove
