"""Capture, mending: sequences that are packed by their lengths, which are data, between `pack_padded_sequence` and its inverse.

They stay padded. Recurrent layers leave the state of a sequence as it is behind its end (`kernels/recurrence.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import FunctionType
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.utils import rnn

from gaudicc.capture.mend.context import Context, active
from gaudicc.capture.mend.operators import fail
from gaudicc.capture.mend.outcomes import NeedsRewrite, here
from gaudicc.capture.mend.truth import fresh_test
from gaudicc.errors import DynamicControlFlowError, ShapeError, Where
from gaudicc.kernels.recurrence import recurrence


class _Refusing:
    """What stands for something that is not there while a model is captured: whoever uses it is refused."""

    what = "the rows of packed sequences are used one by one: how many there are is data"
    hint = "hand the packed sequences to recurrent layers and to pad_packed_sequence only, and go on with padded rows"

    def refuse(self, *_: Any) -> NoReturn:
        """Names the line.

        Raises:
            DynamicControlFlowError: always.
        """
        raise DynamicControlFlowError(self.what, where=Where(source=here(), op="pack_padded_sequence"), hint=self.hint)

    __getitem__ = __len__ = __iter__ = __array__ = refuse

    def __getattr__(self, name: str) -> Any:
        """Refuses, but what Python itself asks for is not there."""
        if name.startswith("__"):
            raise AttributeError(name)
        self.refuse()

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        """Refuses."""
        cls().refuse()


class _Lengths(_Refusing):
    """What `lengths.numpy()` gives while a model is captured: lengths to pack by, and nothing else."""

    what = "the values of a tensor are handed to numpy, which runs on the host"
    hint = "compute with torch, or make it an argument of the model"
    tensor: Tensor


class Padded(rnn.PackedSequence):
    """What stands for packed sequences while a model is captured.

    Attributes:
        rows: `[batch, time, features]`.
        lengths: of each sequence, `[batch]`.
    """

    rows: Tensor
    lengths: Tensor

    def __new__(cls, rows: Tensor, lengths: Tensor, *others: Any) -> Padded:
        """Packs nothing; packed sequences made of their parts, as outputs are, are refused."""
        if others:
            _Refusing().refuse()
        made = tuple.__new__(cls, [_Refusing()] * 4)
        made.rows, made.lengths = rows, lengths
        return made


@contextmanager
def packed_sequences() -> Iterator[None]:
    """Inside, sequences are packed by leaving them padded; under whatever name the model imported the functions."""
    with ExitStack() as patches:
        for plain, ours, through in ((_pack_of_torch, _packed, _to_packed), (_pad_of_torch, _padded, _to_padded)):
            patches.enter_context(patch.object(rnn, ours.__name__, ours, create=True))  # where the code looks names up
            patches.callback(setattr, plain, "__code__", plain.__code__)
            plain.__code__ = through.__code__
        patches.enter_context(patch.object(Tensor, "numpy", _numpy))
        for kind in (nn.LSTM, nn.GRU, nn.RNN):
            patches.enter_context(patch.object(kind, "forward", _forward(kind.forward)))
        yield


_plain_numpy = Tensor.numpy
_TRACED = (FakeTensor, FunctionalTensor)


@wraps(_plain_numpy)
def _numpy(tensor: Tensor, **options: Any) -> Any:
    if not isinstance(tensor, _TRACED):
        return _plain_numpy(tensor, **options)
    lengths = _Lengths()
    lengths.tensor = tensor
    return lengths


def _mending(frame: Any) -> Context:
    """The context of capture; what lengths have to be is checked when the program runs, which takes a rewritten caller."""
    context = active()
    if context is None:
        raise NeedsRewrite(frame)
    return context


def _to_packed(input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Any:
    return _packed(input, lengths, batch_first, enforce_sorted)


def _to_padded(sequence: Any, batch_first: bool = False, padding_value: float = 0.0, total_length: Any = None) -> Any:
    return _padded(sequence, batch_first, padding_value, total_length)


_pack_of_torch, _pad_of_torch = rnn.pack_padded_sequence, rnn.pad_packed_sequence
_plain_pack, _plain_pad = (FunctionType(plain.__code__, vars(rnn)) for plain in (_pack_of_torch, _pad_of_torch))


def _packed(input: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool) -> rnn.PackedSequence:
    if not isinstance(input, _TRACED):  # of another thread
        plain: rnn.PackedSequence = _plain_pack(input, lengths, batch_first, enforce_sorted)
        return plain
    context = _mending(sys._getframe(2))
    known = context.listed.get(id(lengths))
    given = known[1] if known is not None else lengths.tensor if isinstance(lengths, _Lengths) else lengths
    count = torch.as_tensor(given, dtype=torch.int64).to(input.device)
    rows = input if batch_first else input.transpose(0, 1)
    if count.shape[0] != rows.shape[0]:
        raise RuntimeError(f"Expected `len(lengths)` to be equal to batch_size, but got {count.shape[0]}")
    if enforce_sorted:
        order = "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True."
        fail(fresh_test((count[1:] > count[:-1]).any()), RuntimeError(order))
    short = "Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0"
    fail(fresh_test((count <= 0).any()), RuntimeError(short))
    fail(fresh_test((count > rows.shape[1]).any()), RuntimeError("a sequence is longer than the rows that hold it"))
    return Padded(rows, count)


def _padded(sequence: Any, batch_first: bool, padding_value: float, total_length: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(sequence, Padded):
        plain: tuple[Tensor, Tensor] = _plain_pad(sequence, batch_first, padding_value, total_length)
        return plain
    rows, lengths = sequence.rows, sequence.lengths
    there = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    rows = torch.where(there[:, :, None], rows, padding_value)
    if total_length is None:
        rows = _cut(_mending(sys._getframe(2)), rows, lengths.max())
    else:
        long = "Expected total_length to be at least the length of the longest sequence in input"
        fail(fresh_test(lengths.max() > total_length), ValueError(long))
        more = torch.sym_max(total_length - rows.shape[1], 0)
        rows = nn.functional.pad(rows, (0, 0, 0, more), value=padding_value)[:, :total_length]
    return (rows if batch_first else rows.transpose(0, 1)), lengths.cpu()


def _cut(context: Context, rows: Tensor, longest: Tensor) -> Tensor:
    """The rows up to the end of the longest sequence; beside other sizes of inputs, all of them, which must be as many."""
    if all(isinstance(size, int) for size in rows.shape):
        length: Any = context.numbers.read(longest)
        torch._check(length <= rows.shape[1])
        return rows[:, :length]
    what = "the longest packed sequence is shorter than the rows that hold it, of which pad_packed_sequence would cut the rest"
    hint = "give the model no more rows than its longest sequence has, or pad_packed_sequence(..., total_length=x.shape[1])"
    fail(fresh_test(longest < rows.shape[1]), ShapeError(what, where=Where(source=here(), stage="the call"), hint=hint))
    return rows


def _forward(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def forward(layer: nn.RNNBase, input: Any, hx: Any = None) -> Any:
        if not isinstance(input, Padded):
            return plain(layer, input, hx)
        if hx is None:
            count = layer.num_layers * (2 if layer.bidirectional else 1)
            widths = [layer.proj_size or layer.hidden_size, layer.hidden_size]
            made = [input.rows.new_zeros(count, input.rows.shape[0], width) for width in widths]
            hx = tuple(made) if layer.mode == "LSTM" else made[1]
        y, *last = recurrence(
            layer.mode.lower(), input.rows, hx, layer._flat_weights, layer.bias, layer.num_layers,  # type: ignore[arg-type]
            layer.dropout, layer.training, layer.bidirectional, True, input.lengths,
        )  # fmt: skip
        return Padded(y, input.lengths), tuple(last) if layer.mode == "LSTM" else last[0]

    return forward
