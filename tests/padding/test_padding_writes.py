"""Buffers that a model writes by index, as caches are: pads leave them as they are, and no call copies one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.runtime.cpu import CpuRecording

PAGES, ROWS, HEADS, WIDTH = 6, 4, 2, 3
PLACES = PAGES * ROWS
Write = Callable[[Tensor, Tensor, Tensor], object]


class Held(nn.Module):
    """A buffer, what writes `[n, HEADS, WIDTH]` at `[n]` places, and a result of what it holds then."""

    held: Tensor

    def __init__(self, shape: tuple[int, ...], write: Write) -> None:
        super().__init__()
        self.register_buffer("held", torch.randn(shape))
        self.write = write

    def forward(self, places: Tensor, rows: Tensor) -> Tensor:
        self.write(self.held, places, rows)
        return self.held * 1


def put(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held[places] = rows


def paged(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held.view(-1, HEADS, WIDTH)[places] = rows


def paged_copy(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held.view(-1, HEADS, WIDTH).index_copy_(0, places, rows)


def by_page_and_row(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held[places // ROWS, places % ROWS] = rows


def two_in_one(held: Tensor, places: Tensor, rows: Tensor) -> None:
    keys, values = held.unbind(0)
    keys.view(-1, HEADS, WIDTH)[places] = rows
    values.view(-1, HEADS, WIDTH)[places] = 2 * rows


def two_selected(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held[0].view(-1, HEADS, WIDTH)[places] = rows
    held[1][places // ROWS, places % ROWS] = 2 * rows


def heads_first(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held[:, places] = rows.transpose(0, 1)


def copied(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held.index_copy_(1, places, rows.transpose(0, 1))


def one_row_for_all(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held[places] = rows[:1].sum(0)


def row_by_row(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held[torch.arange(len(rows)), places] = rows


def window(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held[: len(rows), 3:4] = rows[:, None]


def window_apart(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held[: len(rows), :, 2:4] = rows[:, :, None]


def window_by_narrow(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held.narrow(0, 0, len(rows)).narrow(-1, 1, 1).copy_(rows[..., :1])


def first_rows(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held[: len(rows)] = rows


def added(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held.index_add_(0, places, rows, alpha=-2)


def accumulated(held: Tensor, places: Tensor, rows: Tensor) -> None:
    held.index_put_((places,), rows, accumulate=True)


FLAT, PAGED, WIDE = (PLACES, HEADS, WIDTH), (PAGES, ROWS, HEADS, WIDTH), (2, PAGES, ROWS, HEADS, WIDTH)
FORMS: dict[Write, tuple[int, ...]] = {
    put: FLAT, paged: PAGED, paged_copy: PAGED, by_page_and_row: PAGED, two_in_one: WIDE, two_selected: WIDE,
    heads_first: (HEADS, PLACES, WIDTH), copied: (HEADS, PLACES, WIDTH), one_row_for_all: FLAT,
    row_by_row: (8, PLACES, HEADS, WIDTH), window: (8, 5, HEADS, WIDTH), window_apart: (8, HEADS, 5, WIDTH),
    window_by_narrow: (8, HEADS, WIDTH), first_rows: (8, HEADS, WIDTH), added: FLAT, accumulated: FLAT,
}  # fmt: skip


CASES = [*((write, 0) for write in FORMS), (put, 1), (paged, 1), (window, 1)]


@pytest.mark.parametrize(("write", "least"), CASES, ids=lambda part: getattr(part, "__name__", str(part)))
def test_pads_write_nothing_and_nothing_is_copied(write: Write, least: int) -> None:
    torch.manual_seed(0)
    model = Held(FORMS[write], write).eval()
    eager, n = copy.deepcopy(model), Dim("n", min=least, max=8)

    def call(count: int) -> tuple[Tensor, Tensor]:
        return torch.randperm(PLACES)[:count], torch.randn(count, HEADS, WIDTH)

    shapes = {"places": {0: n}, "rows": {0: n}}
    verify = "poison" if write in (put, added, window) else "shapes"
    compiled = gaudicc.compile(model, call(3), dynamic_shapes=shapes, buckets=[{"n": 4}, {"n": 8}], verify=verify)
    for count in (3, 8, 1, 7, *([0] if least == 0 else [])):
        inputs = call(count)
        torch.testing.assert_close(compiled(*inputs), eager(*inputs), rtol=0, atol=1e-6)
    for runner in compiled._runners.values():
        assert isinstance(runner._only, CpuRecording)
        source = runner._only.source
        assert "constant_pad" not in source
        assert "copy_(b_held" not in source.replace("index_copy_(", "")


@settings(max_examples=20, deadline=None)
@given(places=st.lists(st.integers(-PLACES, PLACES - 1), max_size=8))
def test_of_equal_places_the_last_one_counts(places: list[int], shared: dict[str, gaudicc.CompiledModel]) -> None:
    given_, rows = torch.tensor(places, dtype=torch.int64), torch.randn(len(places), HEADS, WIDTH)
    held = shared["compiled"](torch.arange(0), rows[:0])
    for place, row in zip(places, rows, strict=True):
        held[place] = row
    assert torch.equal(shared["compiled"](given_, rows), held)


@pytest.fixture(scope="module")
def shared() -> dict[str, gaudicc.CompiledModel]:
    n = Dim("n", min=0, max=8)
    inputs = torch.arange(3), torch.randn(3, HEADS, WIDTH)
    shapes = {"places": {0: n}, "rows": {0: n}}
    return {"compiled": gaudicc.compile(Held(FLAT, put).eval(), inputs, dynamic_shapes=shapes, buckets=[{"n": 8}])}


def test_positions_that_are_written_too() -> None:
    def model(places: Tensor) -> Tensor:
        return places.new_zeros(9, len(places)).index_put((places,), places)

    n = Dim("n", min=1, max=8)
    compiled = gaudicc.compile(model, (torch.tensor([2, 0, 1]),), dynamic_shapes={"places": {0: n}}, buckets=[{"n": 8}])
    for places in (torch.tensor([2, 1]), torch.tensor([3, 4, 5])):
        assert torch.equal(compiled(places), model(places))


def test_views_that_are_not_of_the_first_dims_are_left_alone() -> None:
    def across(held: Tensor, places: Tensor, rows: Tensor) -> None:
        held.view(PAGES, ROWS * HEADS, WIDTH)[0, places % 8] = rows[:, 0]

    def steps(held: Tensor, places: Tensor, rows: Tensor) -> None:
        held[::2, 1:3] = rows[0, 0]

    for write in (across, steps):
        model = Held(PAGED, write).eval()
        eager, inputs = copy.deepcopy(model), (torch.arange(3), torch.randn(3, HEADS, WIDTH))
        compiled = gaudicc.compile(model, inputs)
        assert not any("whole" in note for note in compiled.trace["static-state"].notes)
        assert torch.equal(compiled(*inputs), eager(*inputs))
