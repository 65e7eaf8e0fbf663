"""Pieces whose lengths are data: a loop over them is done to the whole, equal to eager whatever the lengths, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.errors import DynamicControlFlowError, GaudiccError


class Packed(nn.Module):
    """Sequences packed one behind the other; `ends` says where each ends, beginning with 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        q, k, v = (part.unsqueeze(0) for part in self.qkv(x).reshape(x.shape[0], 3, 2, 8).permute(1, 2, 0, 3).unbind(0))
        lengths = ends[1:] - ends[:-1]
        splits = [torch.split(part, lengths.tolist(), dim=2) for part in (q, k, v)]
        outs = [self.attend(a, b, c).transpose(1, 2).contiguous() for a, b, c in zip(*splits, strict=True)]
        result: Tensor = self.proj(torch.cat(outs, dim=1).reshape(x.shape[0], -1))
        return result


class Causal(Packed):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class InParts(Packed):
    """Products and a softmax; the half of each head is turned, as by rotary embedding."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = torch.cat((-q[..., 4:], q[..., :4]), dim=-1)
        weights = F.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.35, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(F.dropout(weights, p=0.0, training=self.training), v)


class Decides(Packed):
    """Decides on the length in a way that is the same for all."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        causal = q.shape[2] > 1 and False
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).reshape(1, 2, q.shape[2], 8)


class Twice(Decides):
    """Two layers: the second one runs only where the first raises nothing. What each piece weighs is collected, and not used."""

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return self.layer(self.layer(x, ends), ends)

    def layer(self, x: Tensor, ends: Tensor) -> Tensor:
        q, k, v = (part.unsqueeze(0) for part in self.qkv(x).reshape(x.shape[0], 3, 2, 8).permute(1, 2, 0, 3).unbind(0))
        outs, weights, nothing = [], [], list[None]()
        lengths = (ends[1:] - ends[:-1]).tolist()
        for a, b, c in zip(*[torch.split(part, lengths, dim=2) for part in (q, k, v)], strict=True):
            outs.append(self.attend(a, b, c).transpose(1, 2))
            weights.append(torch.matmul(a, b.transpose(2, 3)))
            nothing.append(None)
        return self.returned(torch.cat(outs, dim=1).reshape(x.shape[0], -1), weights, nothing)

    def returned(self, whole: Tensor, weights: list[Tensor], nothing: list[None]) -> Tensor:
        result: Tensor = self.proj(whole)
        return result


class OfOne(nn.Module):
    """A loop over the pieces of one tensor, without attention."""

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        pieces: list[Tensor] = []
        for piece in x.split((ends[1:] - ends[:-1]).tolist()):
            pieces += [F.layer_norm(piece, (16,)).relu() * 2]
        return torch.cat(pieces)


def compiled(model: nn.Module, *, ends: bool = True) -> CompiledModel:
    shapes = {"x": {0: Dim("tokens", min=1, max=40)}, "ends": {0: Dim("sequences", min=2, max=9)} if ends else None}
    return gaudicc.compile(model.eval(), (torch.randn(12, 16), torch.tensor([0, 4, 12])), dynamic_shapes=shapes)


@pytest.mark.parametrize("kind", [Packed, Causal, InParts, Decides, Twice, OfOne])
def test_packed_sequences_of_any_lengths_are_as_in_eager(kind: type[nn.Module]) -> None:
    model = kind()
    fast = compiled(model)
    lengths = [[0, 4, 12], [0, 12], [0, 1, 2, 3], [0, 3, 30], [0, 1], [0, 5, 6, 7, 19, 20, 40], [0, 2, 4, 6, 8]]
    for ends in map(torch.tensor, lengths):
        x = torch.randn(int(ends[-1]), 16)
        torch.testing.assert_close(fast(x, ends), model(x, ends), rtol=1e-5, atol=1e-5)
    assert len(fast.notes) > 1


def test_a_number_of_pieces_that_is_fixed_needs_no_dim() -> None:
    model = Packed()
    fast = compiled(model, ends=False)
    for ends in map(torch.tensor, ([0, 4, 12], [0, 1, 33], [0, 39, 40])):
        x = torch.randn(int(ends[-1]), 16)
        torch.testing.assert_close(fast(x, ends), model(x, ends), rtol=1e-5, atol=1e-5)


def test_empty_pieces_are_as_in_eager() -> None:
    fast, model, x = compiled(Packed()), Packed(), torch.randn(9, 16)
    ends = torch.tensor([0, 0, 4, 4, 9])
    torch.testing.assert_close(fast(x, ends), model.eval()(x, ends), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ends", [[0, 4, 11], [0, 14], [0, 8, 4, 12]])
def test_lengths_that_do_not_add_up_raise_what_torch_raises(ends: list[int]) -> None:
    x, model = torch.randn(12, 16), Packed().eval()
    fast = compiled(model)
    with pytest.raises(RuntimeError, match="split_sizes"):
        model(x, torch.tensor(ends))
    with pytest.raises(RuntimeError, match="split_sizes"):
        fast(x, torch.tensor(ends))
    ends_that_fit = torch.tensor([0, 4, 12])
    torch.testing.assert_close(fast(x, ends_that_fit), model(x, ends_that_fit), rtol=1e-5, atol=1e-5)


def test_an_empty_piece_raises_what_it_raises_in_eager() -> None:
    class Reshapes(Packed):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v).reshape(1, -1, q.shape[2], 8)

    model, x, ends = Reshapes().eval(), torch.randn(9, 16), torch.tensor([0, 0, 9])
    fast = compiled(model)
    with pytest.raises(RuntimeError, match="cannot reshape tensor of 0 elements"):
        model(x, ends)
    with pytest.raises(RuntimeError, match="cannot reshape tensor of 0 elements"):
        fast(x, ends)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "reduces": (lambda piece: piece - piece.mean(0, keepdim=True), "reduces over a piece"),
    "sorts": (lambda piece: piece.flip(0), "calls flip"),
    "scales": (
        lambda piece: piece / piece.shape[0],
        "computes with the length|something else where a piece has 1 rows",
    ),
    "reads": (
        lambda piece: piece * (2.0 if piece.shape[0] > 5 else 1.0),
        "a number read from a tensor|something else where a piece has 1 rows|data",
    ),
    "one is special": (lambda piece: piece * 2 if piece.shape[0] > 1 else piece, "where a piece has 1 rows"),
    "mixes": (lambda piece: piece.reshape(16, -1).reshape(-1, 16), "joins|apart|row to row"),
    "softmax": (lambda piece: piece.softmax(0), "softmax over a piece"),
    "product": (lambda piece: (piece @ piece.t()) @ piece, "without weights that are zero"),
    "picks": (lambda piece: piece[1:], "joins the dim|apart"),
    "counts back": (lambda piece: piece.cumsum(0), "calls cumsum"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_rows_of_pieces_is_refused_by_line(name: str) -> None:
    change, words = REFUSED[name]

    class Mixes(nn.Module):
        def forward(self, x: Tensor, ends: Tensor) -> Tensor:
            return torch.cat([change(piece) for piece in x.split((ends[1:] - ends[:-1]).tolist())])

    with pytest.raises(GaudiccError, match=words) as caught:
        compiled(Mixes())
    assert "test_pieces.py" in str(caught.value)


def test_sizes_may_be_named() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = x.split(split_size=[2, 3], dim=-1)
            total: Tensor = torch.squeeze(input=first.sum(dim=1, keepdim=True), dim=1).sum() + second
            return total

    x = torch.randn(4, 5)
    model = Named().eval()
    assert torch.equal(gaudicc.compile(model, (x,))(x), model(x))


def test_pieces_are_joined_as_they_were_split_or_refused() -> None:
    class Stacks(nn.Module):
        def forward(self, x: Tensor, ends: Tensor) -> Tensor:
            pieces = [piece * 2 for piece in x.split((ends[1:] - ends[:-1]).tolist())]
            return torch.cat(pieces, dim=1)

    class Picks(nn.Module):
        def forward(self, x: Tensor, ends: Tensor) -> Tensor:
            pieces = [piece * 2 for piece in x.split((ends[1:] - ends[:-1]).tolist())]
            first: Tensor = pieces[0]
            return first

    class Last(nn.Module):
        def forward(self, x: Tensor, ends: Tensor) -> Tensor:
            last, outs = x, []
            for piece in x.split((ends[1:] - ends[:-1]).tolist()):
                last = piece * 2
                outs.append(last)
            return torch.cat(outs) + last.sum()

    for kind in (Stacks, Picks, Last):
        with pytest.raises(DynamicControlFlowError, match=r"test_pieces\.py"):
            compiled(kind())


def test_what_each_piece_weighs_is_refused_where_it_is_used() -> None:
    class Weighs(Twice):
        def returned(self, whole: Tensor, weights: list[Tensor], nothing: list[None]) -> Tensor:
            return whole + sum(weight.sum() for weight in weights)

    with pytest.raises(DynamicControlFlowError, match="cannot be one tensor"):
        compiled(Weighs())


def test_what_is_carried_from_piece_to_piece_is_refused() -> None:
    class Carries(nn.Module):
        def forward(self, x: Tensor, ends: Tensor) -> Tensor:
            last, outs = x[:1] * 0, []
            for piece in x.split((ends[1:] - ends[:-1]).tolist()):
                outs.append(piece + last)
                last = last + 1
            return torch.cat(outs)

    with pytest.raises(DynamicControlFlowError, match="from piece to piece"):
        compiled(Carries())
