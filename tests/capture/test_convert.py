"""The step from torch.export's graph to a Program."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture


def test_an_argument_may_be_named_like_a_builtin() -> None:
    model, x = nn.Linear(4, 3).eval(), torch.randn(2, 4)  # its argument is called `input`
    torch.testing.assert_close(gaudicc.compile(model, (x,))(input=x), model(x))


def test_a_mutated_argument_named_like_a_builtin_is_written() -> None:
    def fill(input: torch.Tensor) -> torch.Tensor:
        return input.mul_(2) + 1

    x, y = torch.ones(3), torch.ones(3)
    compiled = gaudicc.compile(fill, (torch.ones(3),))
    torch.testing.assert_close(compiled(x), fill(y))
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_sizes_zero_and_one_run(size: int) -> None:
    shapes = {"input": {0: torch.export.Dim("rows", min=0, max=8)}}
    model = nn.Linear(4, 3).eval()
    compiled = gaudicc.compile(model, (torch.randn(2, 4),), dynamic_shapes=shapes, buckets=[{"rows": size}])
    x = torch.randn(size, 4)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("rows", [None, torch.export.Dim("rows", min=2, max=8)])
def test_vmap_is_what_it_maps(rows: object) -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4, 4)), nn.Parameter(torch.randn(3, 4))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            each = torch.vmap(lambda weight, bias: torch.tanh(x @ weight + bias))(self.weight, self.bias)
            return each, torch.vmap(torch.dot)(each.mean(0), x)

    model = Mapped().eval()
    compiled = gaudicc.compile(model, (torch.randn(5, 4),), dynamic_shapes={"x": {0: rows}} if rows else None)
    for size in (5, 2) if rows else (5,):
        x = torch.randn(size, 4)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))


def test_grad_modes_are_no_part_of_a_program() -> None:
    def twice(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return x * 2

    def model(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x + 1
        with torch.enable_grad():
            y = y * x
        result: torch.Tensor = torch.cond(x.sum() > 0, twice, torch.neg, (y,))
        return result

    compiled = gaudicc.compile(model, (torch.ones(3),))
    assert not [
        node for _, module in compiled.program.graphs() for node in module.graph.nodes if "grad" in str(node.target)
    ]
    for x in (torch.ones(3), -torch.ones(3)):
        torch.testing.assert_close(compiled(x), model(x))
        assert torch.is_grad_enabled()


def test_a_graph_that_is_traced_again_decides_nothing_more() -> None:
    """torch asks whether the one row that is compared of two is contiguous; a batch of 2 must not become the only one."""

    def model(x: torch.Tensor) -> Any:
        y = torch.zeros_like(x)
        y[:, 0] = x.sum(1)
        return y, (x[1:] > x[:-1]).any()

    dims = {0: Dim("b", min=2, max=9)}
    program = capture(model, (torch.randn(2, 1),), dynamic_shapes={"x": dims})
    assert [(dim.name, dim.low, dim.high) for dim in program.dimensions] == [("b", 2, 9)]


def test_what_is_written_to_data_is_written_to_the_tensor() -> None:
    def model(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y.data.masked_fill_(mask, -1.0)
        return y.softmax(1)

    x, mask = torch.randn(2, 4), torch.tensor([[False, True, False, True]])
    compiled = gaudicc.compile(model, (x, ~mask))
    torch.testing.assert_close(compiled(x, mask), model(x, mask))
    assert "data" not in vars(torch.Tensor)
