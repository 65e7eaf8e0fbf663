"""Numbers that a model reads from tensors and returns, or by which it picks a row: as in eager, for fixed and dynamic sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torch.utils import _pytree as pytree

import gaudicc

ROWS = ({0: Dim("rows", min=1, max=9)},)


def picks(x: Tensor) -> Any:
    at = int(x.argmax())
    return x * 2, at, float(x.max()), bool(x[0] > 0), x[at]


def counts(x: Tensor) -> Any:
    return {"count": (x > 0).nonzero().shape[0], "x": x}


def trips(x: Tensor) -> Any:
    made = 0
    while x.sum() < 10:
        x, made = x + 1, made + 1
    return x, made


def found_at(x: Tensor) -> Any:
    for i in range(x.shape[0]):
        if x[i] > 0.5:
            return i
    return -1


@pytest.mark.parametrize("shapes", [None, ROWS])
@pytest.mark.parametrize("body", [picks, counts, trips, found_at])
def test_numbers_that_are_returned(body: Any, shapes: Any) -> None:
    def model(x: Tensor) -> Any:
        return body(x)

    compiled = gaudicc.compile(model, (torch.rand(4),), dynamic_shapes=shapes)
    for rows in (4, 4, 4) if shapes is None else (1, 2, 5, 9):
        x = torch.randn(rows)
        for ours, theirs in zip(*map(pytree.tree_leaves, (compiled(x), body(x))), strict=True):
            assert type(ours) is type(theirs)
            assert torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours == theirs


def column(x: Tensor, at: Tensor) -> Tensor:
    return x[:, int(at)] + 1


def of_selected(x: Tensor, at: Tensor) -> Tensor:
    return x[x[:, 0] > 0][int(at)]


def beside_selected(x: Tensor, at: Tensor) -> Tensor:
    return (x[x[:, 0] > 0][:, int(at)] > 0).sum()


def written(x: Tensor, at: Tensor) -> Tensor:
    result = x.clone()
    result[int(at)] = 5.0
    return result


def outcome(call: Any, *args: Tensor) -> Any:
    try:
        return call(*args)
    except IndexError:
        return "IndexError"


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("body", [column, of_selected, beside_selected, written])
def test_rows_that_are_picked_by_a_number(body: Any, dynamic: bool) -> None:
    """Also where there is no such row: the host raises what eager PyTorch raises."""
    along = 1 if body is column else 0
    shapes = {"x": {along: Dim("rows", min=1, max=9)}, "at": None} if dynamic else None

    def model(x: Tensor, at: Tensor) -> Any:
        return body(x, at)

    def sized(rows: int) -> Tensor:
        return torch.randn(3, rows) if body is column else torch.randn(rows, 3)

    compiled = gaudicc.compile(model, (sized(4), torch.tensor(1)), dynamic_shapes=shapes)
    for rows in (1, 4, 9) if dynamic else (4,):
        for at in map(torch.tensor, (0, 1, -1, 3, -4, 20)):
            x = sized(rows)
            ours, theirs = outcome(compiled, x, at), outcome(body, x, at)
            assert (
                torch.equal(ours, theirs) if isinstance(theirs, Tensor) and isinstance(ours, Tensor) else ours == theirs
            )


def of_a_changed_tensor(x: Tensor, at: Tensor) -> Any:
    rows = x.clone()
    rows[1] = 7.0
    return rows[int(at)]


def of_a_changed_tensor_by_tensor(x: Tensor, at: Tensor) -> Any:
    rows = x.clone()
    rows[0] = 3.0
    return rows[at], rows


def changed_through_the_row(x: Tensor, at: Tensor) -> Any:
    rows = x.clone()
    row = rows[int(at)]
    row.add_(1)
    return row, rows


@pytest.mark.parametrize("body", [of_a_changed_tensor, of_a_changed_tensor_by_tensor, changed_through_the_row])
def test_a_row_that_is_returned_of_a_tensor_that_was_changed(body: Any) -> None:
    x = torch.randn(4, 3)

    def model(x: Tensor, at: Tensor) -> Any:
        return body(x, at)

    compiled = gaudicc.compile(model, (x, torch.tensor(1)))
    for at in map(torch.tensor, (0, 3, -1)):
        for ours, theirs in zip(*map(pytree.tree_leaves, (compiled(x, at), body(x, at))), strict=True):
            assert torch.equal(ours, theirs)
