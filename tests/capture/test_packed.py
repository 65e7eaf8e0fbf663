"""Sequences packed by their lengths: recurrent layers between `pack_padded_sequence` and `pad_packed_sequence`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence as pack
from torch.nn.utils.rnn import pad_packed_sequence

import gaudicc
from gaudicc.capture.mend.packed import packed_sequences
from gaudicc.errors import DynamicControlFlowError, ShapeError
from gaudicc.kernels.recurrence import recurrence


class Encoder(nn.Module):
    """Packs, runs a layer, and unpacks."""

    def __init__(self, kind: str, *, as_list: bool = False, ordered: bool = False, total: bool = True) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(4, 6, batch_first=True, bidirectional=kind == "GRU")
        self.as_list, self.ordered, self.total = as_list, ordered, total

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        count: Any = lengths.tolist() if self.as_list else lengths.cpu().numpy()
        packed, state = self.layer(pack(x, count, batch_first=True, enforce_sorted=self.ordered))
        y, counted = pad_packed_sequence(packed, True, -1.0, x.shape[1] if self.total else None)
        return y, counted, state


def dims() -> dict[str, Any]:
    batch = Dim("batch", min=2, max=4)
    return {"x": {0: batch, 1: Dim("time", min=2, max=7)}, "lengths": {0: batch}}


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_sequence_ends_where_its_length_says(data: st.DataObject) -> None:
    kind, two_ways = data.draw(st.sampled_from(("LSTM", "GRU", "RNN"))), data.draw(st.booleans())
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    layer = getattr(nn, kind)(3, 4, num_layers=2, batch_first=True, bidirectional=two_ways)
    x = torch.randn(len(lengths), 6, 3)
    state = torch.randn(4 if two_ways else 2, len(lengths), 4)
    begin: Any = (state, state.tanh()) if kind == "LSTM" else state
    given = (layer._flat_weights, True, 2, 0.0, False, two_ways, True)
    with torch.no_grad():
        y, *last = recurrence(layer.mode.lower(), x, begin, *given, lengths)
        packed, after = layer(pack(x, lengths, batch_first=True, enforce_sorted=False), begin)
        wanted, _ = pad_packed_sequence(packed, batch_first=True, total_length=6)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(tuple(last), after if kind == "LSTM" else (after,))


@pytest.mark.parametrize(("kind", "as_list"), [("LSTM", False), ("GRU", True)])
def test_packed_sequences_of_any_sizes(kind: str, as_list: bool) -> None:
    model = Encoder(kind, as_list=as_list).eval()
    compiled = gaudicc.compile(
        model,
        (torch.randn(3, 5, 4), torch.tensor([2, 5, 3])),
        dynamic_shapes=dims(),
        buckets=[{"batch": 4, "time": 7}],
        verify="poison",
    )
    for count, time in (([1, 2], 2), ([2, 5, 3], 7), ([7, 7, 1, 2], 7)):
        x, lengths = torch.randn(len(count), time, 4), torch.tensor(count)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, lengths), model(x, lengths))


def test_lengths_that_cannot_be_raise() -> None:
    model = Encoder("RNN", ordered=True, total=False).eval()
    x = torch.randn(3, 5, 4)
    compiled = gaudicc.compile(
        model, (x, torch.tensor([5, 3, 2])), dynamic_shapes=dims(), buckets=[{"batch": 4, "time": 7}]
    )
    for count, words in (([5, 3, 0], "greater than 0"), ([5, 2, 3], "sorted"), ([6, 5, 5], "longer than")):
        with pytest.raises(RuntimeError):
            model(x, torch.tensor(count))
        with pytest.raises(RuntimeError, match=words):
            compiled(x, torch.tensor(count))
    with pytest.raises(ShapeError, match="shorter than the rows"):  # eager cuts the rows, which are data
        compiled(x, torch.tensor([4, 3, 2]))


def test_rows_of_a_fixed_number_are_cut_at_the_longest_sequence() -> None:
    model = Encoder("RNN", total=False).eval()
    x = torch.randn(2, 5, 4)
    compiled = gaudicc.compile(model, (x, torch.tensor([5, 3])))
    for count in ([5, 3], [2, 4], [1, 1]):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, torch.tensor(count)), model(x, torch.tensor(count)))


@pytest.mark.parametrize("use", ["data", "first", "output"])
def test_rows_one_by_one_are_refused(use: str) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 6)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            packed, _ = self.layer(pack(x, lengths, enforce_sorted=False))
            return packed if use == "output" else torch.relu(packed.data if use == "data" else packed[0])

    with pytest.raises(DynamicControlFlowError, match="packed sequences are used one by one") as caught:
        gaudicc.compile(Rows().eval(), (torch.randn(5, 2, 4), torch.tensor([5, 3])))
    assert "pad_packed_sequence" in caught.value.todo
    if use != "output":
        assert "test_packed.py:" in str(caught.value.where.source)


def test_lengths_that_numpy_computes_with_are_refused() -> None:
    class Doubled(Encoder):
        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return self.layer(pack(x, np.minimum(lengths.numpy(), 3), enforce_sorted=False))[1]

    with pytest.raises(DynamicControlFlowError, match="handed to numpy"):
        gaudicc.compile(Doubled("RNN").eval(), (torch.randn(5, 2, 4), torch.tensor([5, 3])))


def test_whoever_computes_meanwhile_packs_as_before() -> None:
    x, lengths = torch.randn(2, 5, 4), torch.tensor([5, 3])
    model = Encoder("LSTM").eval()
    expected = model(x, lengths)
    with packed_sequences():
        torch.testing.assert_close(model(x, lengths), expected, rtol=0, atol=0)
        assert pack(x, lengths, batch_first=True).batch_sizes.tolist() == [2, 2, 2, 1, 1]
