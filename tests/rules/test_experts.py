"""Mixtures lowered whole: rows are moved to their experts once, and what only looks like a mixture is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gaudicc.capture import capture
from gaudicc.kernels import grouped_linear
from gaudicc.passes.lower_semantic_ops import LowerSemanticOps
from gaudicc.pipeline import CAPTURED, Pipeline
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.trace import PassRecord
from gaudicc.verify import Level

WHOLE = "mixtures of experts lowered to plain ATen, each whole"


def product(rows: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    result: Tensor = grouped_linear(rows, weight, group)
    return result


Mixture = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
ROWS, GROUPS, WIDTH = 24, 3, 4


def lowered(model: Mixture, rows: int = ROWS, chosen: Tensor | None = None) -> tuple[Program, PassRecord]:
    """What the pass makes of a mixture, compared with what it was."""

    class Module(nn.Module):
        def forward(self, x: Tensor, group: Tensor, both: Tensor, down: Tensor, bias: Tensor) -> Tensor:
            return model(x, group, both, down, bias)

    make = torch.Generator().manual_seed(rows)
    group = torch.randint(0, GROUPS, (rows,), generator=make) if chosen is None else chosen
    sizes = ((rows, WIDTH), (GROUPS, 2 * WIDTH, WIDTH), (GROUPS, WIDTH, WIDTH), (GROUPS, 2 * WIDTH))
    x, both, down, bias = (torch.randn(size, generator=make) for size in sizes)
    program = capture(Module().eval(), (x, group, both, down, bias))
    program.target = load_target("gaudi3")
    step = LowerSemanticOps()
    after, (record,) = Pipeline((step,), initial=CAPTURED | step.requires).run(program, level=Level.NUMERICS)
    return after, record


def with_biases(x: Tensor, group: Tensor, both: Tensor, down: Tensor, bias: Tensor) -> Tensor:
    """As gpt-oss has it."""
    inner = product(x, both, group) + bias[group]
    gate, up = inner[..., ::2].clamp(max=1.0), inner[..., 1::2].clamp(-1.0, 1.0)
    return product((up + 1) * (gate * torch.sigmoid(gate * 1.7)), down, group) + bias[group][:, :WIDTH]


def with_a_column_of_both(x: Tensor, group: Tensor, both: Tensor, down: Tensor, bias: Tensor) -> Tensor:
    gate, up = product(x, both, group).split(WIDTH, -1)
    return product(torch.nn.functional.silu(gate) * up, down, group)


def with_products_apart(x: Tensor, group: Tensor, both: Tensor, down: Tensor, bias: Tensor) -> Tensor:
    gate, up = product(x, both[:, :WIDTH], group), product(x, both[:, WIDTH:], group)
    return product(torch.nn.functional.gelu(gate) * up * bias[0, :WIDTH], down, group)


@pytest.mark.parametrize("model", [with_biases, with_a_column_of_both, with_products_apart])
@pytest.mark.parametrize("rows", [2, ROWS])
def test_rows_are_moved_once(model: Mixture, rows: int) -> None:
    after, record = lowered(model, rows)
    assert any(WHOLE in note for note in record.notes), record.notes
    ops = after.count_ops()
    assert "gaudicc.grouped_linear" not in ops
    assert ops["aten.index_copy"] == 1


@given(chosen=st.lists(st.integers(0, GROUPS - 1), min_size=1, max_size=20))
def test_every_routing(chosen: list[int]) -> None:
    lowered(with_biases, len(chosen), torch.tensor(chosen))


def scaled_by_row(x: Tensor, group: Tensor, both: Tensor, down: Tensor, bias: Tensor) -> Tensor:
    return product(product(x, both, group)[:, :WIDTH] * x, down, group)


def mixed_rows(x: Tensor, group: Tensor, both: Tensor, down: Tensor, bias: Tensor) -> Tensor:
    return product(product(x, both, group)[:, :WIDTH].flip(0), down, group)


def other_groups(x: Tensor, group: Tensor, both: Tensor, down: Tensor, bias: Tensor) -> Tensor:
    return product(product(x, both, group)[:, :WIDTH], down, group.flip(0))


def read_twice(x: Tensor, group: Tensor, both: Tensor, down: Tensor, bias: Tensor) -> Tensor:
    inner = product(x, both, group)[:, :WIDTH]
    return product(inner, down, group) + inner.sum(0)


def cut_rows(x: Tensor, group: Tensor, both: Tensor, down: Tensor, bias: Tensor) -> Tensor:
    return product(product(x, both, group)[: ROWS // 2, :WIDTH], down, group[: ROWS // 2])


@pytest.mark.parametrize("model", [scaled_by_row, mixed_rows, other_groups, read_twice, cut_rows])
def test_what_is_no_mixture_is_lowered_product_by_product(model: Mixture) -> None:
    after, record = lowered(model)
    assert not any(WHOLE in note for note in record.notes), record.notes
    assert after.count_ops()["aten.index_copy"] == 2
