"""What is computed on the host before a call: functions that are marked, and those of a library's vision towers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.errors import GaudiccError, InputError, ModelRaisedError


@gaudicc.on_host
def rows_and_columns(grid: Tensor, scale: int) -> tuple[Tensor, Tensor | None]:
    """Row and column of each cell of some grids, `[cells, 2]`."""
    cells = [torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in grid.tolist()]
    return torch.cat(cells) * scale, None


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 8)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        positions, nothing = rows_and_columns(grid, 2)
        assert nothing is None
        result: Tensor = (x + self.linear(positions.float())).relu()
        return result


def compiled(model: nn.Module) -> gaudicc.CompiledModel:
    grid = torch.tensor([[2, 3], [4, 1]])
    return gaudicc.compile(
        model.eval(), (torch.randn(10, 8), grid), dynamic_shapes={"x": {0: Dim("cells", min=1, max=64)}}
    )


def test_a_marked_function_runs_before_each_call() -> None:
    model = Towers()
    fast = compiled(model)
    assert any("computed on the host" in note and "rows_and_columns" in note for note in fast.notes)
    for grid in map(torch.tensor, ([[2, 3], [4, 1]], [[5, 5], [1, 1]], [[1, 1], [7, 9]])):
        x = torch.randn(int(grid.prod(1).sum()), 8)
        torch.testing.assert_close(fast(x, grid), model(x, grid))
        torch.testing.assert_close(fast(grid=grid, x=x), model(x, grid))


def test_a_call_whose_results_do_not_fit_is_refused() -> None:
    with pytest.raises(GaudiccError, match="cells"):
        compiled(Towers())(torch.randn(7, 8), torch.tensor([[2, 3], [4, 1]]))


def test_an_error_of_the_function_is_the_users_own() -> None:
    with pytest.raises(RuntimeError):
        compiled(Towers())(torch.randn(7, 8), torch.tensor([[2, -3], [4, 1]]))


def test_a_function_of_what_the_model_computes_stays_in_the_graph() -> None:
    @gaudicc.on_host
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    class Computes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return doubled(x + 1)

    fast = gaudicc.compile(Computes().eval(), (torch.ones(3),))
    assert fast(torch.ones(3)).tolist() == [4.0] * 3
    assert not any("host before" in note for note in fast.notes)


def test_a_bundle_cannot_hold_a_function_of_the_host(tmp_path: object) -> None:
    with pytest.raises(InputError, match="rows_and_columns"):
        compiled(Towers()).save(f"{tmp_path}/towers.gaudicc")


class Merges(nn.Module):
    """Four rows become one: other numbers of rows raise, in eager PyTorch too."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 4 * x.shape[1]) * 2


def test_sizes_for_which_the_model_raises_are_refused_at_the_call() -> None:
    model = Merges().eval()
    fast = gaudicc.compile(model, (torch.randn(8, 3),), dynamic_shapes={"x": {0: Dim("rows", min=4, max=40)}})
    for rows in (4, 8, 12, 36, 40):
        x = torch.randn(rows, 3)
        assert torch.equal(fast(x), model(x))
    with pytest.raises(ModelRaisedError, match="is invalid for input of size"):
        fast(torch.randn(6, 3))
    assert torch.equal(fast(x), model(x))


def test_sizes_that_every_model_takes_are_not_called_raising() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] % 2 else x * 3

    model = Counts().eval()
    fast = gaudicc.compile(model, (torch.randn(8, 3),), dynamic_shapes={"x": {0: Dim("rows", min=1, max=20)}})
    for rows in range(1, 21):
        x = torch.randn(rows, 3)
        assert torch.equal(fast(x), model(x))
