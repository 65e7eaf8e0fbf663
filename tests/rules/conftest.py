"""What the tests of rules share: a rule against its op, and a call through the whole legalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from gaudicc.calls import unflatten as give_back
from gaudicc.capture import capture
from gaudicc.interpreter import interpret
from gaudicc.invariants import SHAPES_GUARDED
from gaudicc.passes import DEFAULT_PIPELINE, CleanUp, Decompose, LegalizeDtypes, LegalizeOps, Specialize
from gaudicc.passes.legalize_ops import ALL_RULES
from gaudicc.pipeline import CAPTURED, Numerics, Pipeline
from gaudicc.rules.rule import Rule
from gaudicc.targets import load_target
from gaudicc.verify import Level, differs

# What is not finite becomes any integer, in eager too.
_CASTS = {"aten::_to_copy", "aten::to.dtype"}
PASSES = (Decompose(), CleanUp(), Specialize(), LegalizeDtypes(), LegalizeOps())


def rule_of(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rule:
    rule = next((rule for rule in ALL_RULES if op in rule.ops and rule.check(*args, **kwargs) is None), None)
    assert rule is not None, f"no rule takes {op}{args}"
    return rule


@pytest.fixture(scope="session")
def same() -> Callable[..., None]:
    """`same(op, *args, scale=1, **kwargs)`: the rule that takes the call gives what the op gives.

    A ROUNDING rule is allowed `scale` times the tolerance of `gaudicc.verify`.
    """

    def check(op: Any, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        rule = rule_of(op, args, kwargs)
        theirs, ours = op(*args, **kwargs), rule.rewrite(*args, **kwargs)
        pairs = list(zip(*map(pytree.tree_leaves, (theirs, ours)), strict=False))
        assert pairs
        for left, right in pairs:
            difference = differs(left, right, bitwise=rule.numerics is Numerics.BITWISE)
            if difference and rule.numerics is Numerics.ROUNDING and left.dtype.is_floating_point:
                torch.testing.assert_close(right, left, rtol=1e-5 * scale, atol=1e-5 * scale, equal_nan=True)
            else:
                assert difference is None, f"{rule.name}: {difference}"

    return check


@pytest.fixture(scope="session")
def legally() -> Callable[..., Any]:
    """`legally(function, *tensors)`: the results of a function, captured, legalised, and run by the rule interpreter.

    Nothing that runs may stand on less than evidence.
    """

    def run(function: Callable[..., Any], *tensors: torch.Tensor) -> Any:
        program = capture(function, tensors)
        program.target = target = load_target("gaudi3")
        program, _ = Pipeline(PASSES, initial=CAPTURED | {SHAPES_GUARDED}).run(program)
        result = interpret(program.root, *program.feed(program.example), target=target)
        assert result.legal, result.presumed
        return result.outputs

    return run


@st.composite
def _tensors(
    draw: st.DrawFn,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    *,
    rank: tuple[int, int] = (1, 3),
    sizes: tuple[int, int] = (0, 5),
    wild: bool = True,
) -> torch.Tensor:
    """Small values that repeat, contiguous, transposed, expanded or with gaps; NaN, infinities and -0.0 if `wild`."""
    shape = draw(st.lists(st.integers(*sizes), min_size=rank[0], max_size=rank[1]))
    dtype = draw(st.sampled_from(list(dtypes)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    x = torch.randint(-4, 5, [2 * size for size in shape], generator=generator).div(2).to(dtype)
    if wild and dtype.is_floating_point and x.numel():
        special = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0], dtype=dtype)
        x.view(-1)[torch.randint(0, x.numel(), (3,), generator=generator)] = special[draw(st.integers(0, 3))]
    layout = draw(st.sampled_from(["contiguous", "transposed", "gaps", "expanded"]))
    if layout == "gaps":
        return x[tuple(slice(None, None, 2) for _ in shape)]
    x = x[tuple(slice(0, size) for size in shape)].contiguous()
    if layout == "expanded" and x.dim() and x.numel():
        return x[:1].expand(x.shape)
    return x.transpose(0, -1) if layout == "transposed" and x.dim() else x


@pytest.fixture(scope="session")
def tensors() -> Callable[..., st.SearchStrategy[torch.Tensor]]:
    """`tensors(dtypes, rank=(low, high), sizes=(low, high), wild=True)`: a strategy."""
    return _tensors


@pytest.fixture(scope="session")
def agrees() -> Callable[..., None]:
    """`agrees(function, *tensors)`: the whole pipeline and the rule interpreter give what eager gives, on evidence."""

    def check(function: Callable[..., Any], *inputs: torch.Tensor) -> None:
        expected = [leaf for leaf in pytree.tree_leaves(function(*map(torch.clone, inputs))) if _is_tensor(leaf)]
        program = capture(function, inputs)
        program.target = target = load_target("gaudi3")
        program, _ = Pipeline(DEFAULT_PIPELINE).run(program, level=Level.STRUCTURE)
        result = interpret(program.root, *program.feed(program.example), target=target)
        assert result.legal, result.presumed
        assert result.overflowed.keys() <= _CASTS, result.overflowed
        returned: Any = result.outputs
        given_back = give_back(program, returned, [])  # raises what a flag says
        ours = [leaf for leaf in pytree.tree_leaves(given_back) if _is_tensor(leaf)]
        assert len(ours) == len(expected)
        for left, right in zip(ours, expected, strict=True):
            close = 1e-2 if right.dtype in (torch.float16, torch.bfloat16) else 1e-4 if right.is_floating_point() else 0
            torch.testing.assert_close(left, right, rtol=close, atol=close, equal_nan=True)

    return check


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)
