"""Small programs of random ops over two dynamic dims: refused by name, or right for sizes of 0, 1, 2 and more, poisoned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import gaudicc
from gaudicc.capture import capture_sides
from gaudicc.errors import GaudiccError, NumericsError
from gaudicc.padding.poison import check
from gaudicc.passes import BoundDynamicOps, CleanUp, Decompose, RecognizeAttention, RecognizeNorm
from gaudicc.passes.pad import Pad
from gaudicc.pipeline import Pipeline
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.verify import Level, differs

LENGTHS = ((2, 5), (3, 6), (1, 1), (3, 2), (1, 4), (0, 4), (2, 0))
BUCKET = {"b": 3, "s": 6}
LARGEST = 4000


def places(t: Tensor) -> Tensor:
    """Numbers 0 and 1 that depend on the data."""
    made: Tensor = t.nan_to_num(0, 0, 0).abs().clamp(max=50).to(torch.int64) % 2
    return made


def merged(t: Tensor, dim: int) -> Tensor:
    dim = min(dim, t.dim() - 2)
    return t.flatten(dim, dim + 1)


def split_again(t: Tensor, x: Tensor) -> Tensor:
    at = next(dim for dim in range(t.dim()) if t.shape[dim] == x.shape[0] * x.shape[1])
    made: Tensor = t.unflatten(at, x.shape[:2])
    return made


# (a tensor, an earlier one, a dim, the first input) -> a tensor
OPS: dict[str, Callable[[Tensor, Tensor, int, Tensor], Tensor]] = {
    "log": lambda t, u, d, x: t.log(),
    "reciprocal": lambda t, u, d, x: 1 / (t + 1),
    "exp": lambda t, u, d, x: t.exp(),
    "above": lambda t, u, d, x: (t > 0).float(),
    "sum": lambda t, u, d, x: t.sum(d),
    "mean": lambda t, u, d, x: t.mean(d, keepdim=True),
    "amax": lambda t, u, d, x: t.amax(d, keepdim=True),
    "std": lambda t, u, d, x: t.std(d, correction=0),
    "argmax": lambda t, u, d, x: t.argmax(d).float(),
    "prod": lambda t, u, d, x: t.prod(d),
    "logsumexp": lambda t, u, d, x: t.logsumexp(d),
    "softmax": lambda t, u, d, x: t.softmax(d),
    "cumsum": lambda t, u, d, x: t.cumsum(d),
    "flip": lambda t, u, d, x: t.flip(d),
    "roll": lambda t, u, d, x: t.roll(1, d),
    "sort": lambda t, u, d, x: t.sort(d)[0],
    "order": lambda t, u, d, x: t.argsort(dim=d, stable=True).float(),
    "merge": lambda t, u, d, x: merged(t, d),
    "split": lambda t, u, d, x: split_again(t, x),
    "rows": lambda t, u, d, x: t.reshape(t.shape[0], -1),
    "swap": lambda t, u, d, x: t.transpose(d, -1),
    "cat": lambda t, u, d, x: torch.cat([t, u], d),
    "stack": lambda t, u, d, x: torch.stack([t, u], d),
    "add": lambda t, u, d, x: t + u,
    "divide": lambda t, u, d, x: t / u,
    "choose": lambda t, u, d, x: torch.where(t > 0, t, u),
    "product": lambda t, u, d, x: t @ u.transpose(-1, -2),
    "last": lambda t, u, d, x: t.select(d, -1),
    "but-last": lambda t, u, d, x: t.narrow(d, 0, t.shape[d] - 1),
    "but-first": lambda t, u, d, x: t.narrow(d, 1, t.shape[d] - 1),
    "by-size": lambda t, u, d, x: t / x.shape[1] + t.shape[0],
    "positions": lambda t, u, d, x: t * torch.arange(t.shape[-1]),
    "gather": lambda t, u, d, x: t.gather(d, t.argsort(dim=d, stable=True)),
    "take": lambda t, u, d, x: t[places(u) * 0],
    "take-backwards": lambda t, u, d, x: t.index_select(d, torch.arange(t.shape[d]).flip(0)),
    "scatter": lambda t, u, d, x: torch.zeros(t.shape).scatter(d, t.argsort(dim=d, stable=True), t + 1),
    "scatter-add": lambda t, u, d, x: torch.zeros(t.shape).scatter_add(d, places(t) * 0, t),
    "count": lambda t, u, d, x: torch.zeros(4).index_add(0, places(t).flatten(), torch.ones(t.numel())),
    "index-add": lambda t, u, d, x: torch.zeros(2, *t.shape[1:]).index_add(0, places(t.flatten(1)[:, 0]), t),
    "index-put": lambda t, u, d, x: torch.zeros(t.shape).index_put((torch.arange(t.shape[0]),), t * 2),
    "pad": lambda t, u, d, x: F.pad(t, (1, 2), value=2.0),
    "pad-rows": lambda t, u, d, x: F.pad(t, (0, 0, 1, 0)),
    "repeat": lambda t, u, d, x: t.repeat_interleave(2, d),
    "wider": lambda t, u, d, x: t.unsqueeze(d),
    "pool": lambda t, u, d, x: F.avg_pool1d(t, 2, ceil_mode=True),
    "lower": lambda t, u, d, x: t.tril(),
    "attention": lambda t, u, d, x: F.scaled_dot_product_attention(t, t, t),
    "centred": lambda t, u, d, x: t - t.mean(),
}
Step = tuple[str, int, int]
STEP = st.tuples(st.sampled_from(sorted(OPS)), st.integers(0, 9), st.integers(0, 2))


class Steps(nn.Module):
    """Runs steps on two inputs `[b, s, 3]`; gives the last tensor, and the one in the middle."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        held = [x, y]
        for name, other, dim in self.steps:
            held.append(OPS[name](held[-1], held[other % len(held)], dim % max(held[-1].dim(), 1), x))
        return held[-1], held[len(held) // 2]


def inputs_of(lengths: tuple[int, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return {name: torch.randn(*lengths, 3, generator=generator) for name in ("x", "y")}


def runs(steps: list[Step], lengths: tuple[int, int]) -> bool:
    try:
        return all(result.numel() <= LARGEST for result in Steps(steps)(**inputs_of(lengths)))
    except (RuntimeError, IndexError, StopIteration, ValueError):
        return False


def usable(steps: list[Step]) -> list[Step]:
    """The steps without those that fail in eager PyTorch."""
    kept: list[Step] = []
    for step in steps:
        if all(runs([*kept, step], lengths) for lengths in LENGTHS[:5]):
            kept.append(step)
    return kept


def prove(steps: list[Step], low: int) -> None:
    model = Steps(steps).eval()
    shapes = {0: Dim("b", min=low, max=8), 1: Dim("s", min=low, max=16)}
    try:
        sides = capture_sides(model, inputs_of((2, 5)), dynamic_shapes={"x": shapes, "y": shapes})
        for side in sides:
            side.program.target = load_target("gaudi3")
            passes = (RecognizeAttention(), RecognizeNorm(), BoundDynamicOps(), Decompose(), CleanUp())
            program = Pipeline(passes).run(side.program, level=Level.STRUCTURE)[0]
            served = [lengths for lengths in LENGTHS if min(lengths) >= low and runs(steps, lengths)]
            served = [lengths for lengths in served if side.serves(dict(zip(BUCKET, lengths, strict=True)))]
            calls = [(named(program, lengths), physical(program)) for lengths in served]
            for lengths, (given_, _) in zip(served, calls, strict=True):
                for got, want in zip(program.run(given_), model(**inputs_of(lengths)), strict=False):
                    assert differs(want, got, bitwise=False) is None, f"at {lengths}"
            if calls and program.dimensions and side.serves(BUCKET):
                check(Pad().run(program.copy()).program, program, calls)
    except NumericsError:
        raise
    except GaudiccError:
        return  # refused by name


def named(program: Program, lengths: tuple[int, int]) -> dict[str, Tensor]:
    given_ = inputs_of(lengths)
    return {spec.name: given_[spec.source] for spec in program.user_inputs()}


def physical(program: Program) -> dict[str, int]:
    return {dim.name: BUCKET[dim.name] for dim in program.dimensions}


def prove_usable(steps: list[Step], low: int) -> None:
    steps = usable(steps)
    assume(len(steps) > 1)
    prove(steps, low)


@settings(max_examples=12, deadline=None)
@given(steps=st.lists(STEP, min_size=3, max_size=8), low=st.integers(0, 1))
def test_random_programs_are_right_or_refused(steps: list[Step], low: int) -> None:
    prove_usable(steps, low)


@pytest.mark.sweep
@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, min_size=3, max_size=8), low=st.integers(0, 1))
def test_many_random_programs_are_right_or_refused(steps: list[Step], low: int) -> None:
    prove_usable(steps, low)


FOUND: dict[str, Any] = {
    "merged rows counted in zeros": [("merge", 0, 0), ("count", 0, 0)],
    "an index into rows of which several sizes are padded": [("merge", 0, 1), ("take", 0, 0), ("merge", 0, 0)],
    "a dim that is 1 on a side only": [("cat", 1, 2), ("split", 0, 0), ("but-first", 0, 2)],
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_wrong_once(name: str) -> None:
    prove(FOUND[name], 1)


class Experts(nn.Module):
    """Rows sorted by expert, split by counts that only data knows, and joined again; twice, as in a stack of two layers."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        values, chosen = rows.topk(2, dim=1)
        counts = torch.zeros(rows.shape[0], 4).scatter(1, chosen, 1).long().sum(0).tolist()
        order = chosen.flatten().sort(stable=True)[1]
        at = order.div(2, rounding_mode="trunc")
        made = rows[at]
        for _ in range(2):
            pieces = made.split(counts, 0)
            made = torch.cat([pieces[0], pieces[1] * 2, pieces[2] * 3, pieces[3] * 4])
        made = made * values.flatten()[order][:, None]
        return torch.zeros(rows.shape[0], 4).index_add(0, at, made).view(x.shape)


def test_pieces_of_dynamic_rows_are_as_long_as_the_whole() -> None:
    shapes = {"x": {0: Dim("b", min=1, max=4), 1: Dim("s", min=1, max=8)}}
    compiled = gaudicc.compile(
        Experts().eval(),
        (torch.randn(2, 5, 4),),
        dynamic_shapes=shapes,
        buckets=[{"b": 4, "s": 8}],
        verify="poison",
    )
    for sizes in ((1, 1), (3, 7), (4, 8)):
        x = torch.randn(*sizes, 4)
        torch.testing.assert_close(compiled(x), Experts()(x))
