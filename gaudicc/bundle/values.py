"""Bundle: fake values of nodes <-> JSON. Dtype, shape, strides and device of tensors; sizes; tuples of these."""

from __future__ import annotations

from typing import Any

import torch

from gaudicc.bundle.item import Item
from gaudicc.bundle.literals import DTYPES, MAX_DEPTH, device_of
from gaudicc.bundle.sizes import SizeReader, SizeWriter

_SYMBOLIC = {"int": torch.SymInt, "float": torch.SymFloat, "bool": torch.SymBool}


def encode(value: Any, sizes: SizeWriter) -> object:
    """A fake value as JSON.

    Raises:
        TypeError: it is no strided tensor, number or tuple of these.
    """
    if value is None or type(value) in (bool, int, float):
        return value
    for word, kind in _SYMBOLIC.items():
        if isinstance(value, kind):
            return {word: sizes.size(value)}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [encode(item, sizes) for item in value]}
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        raise TypeError(f"a value of type {type(value).__name__} cannot be saved")
    return {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": [sizes.size(size) for size in value.shape],
        "stride": [sizes.size(step) for step in value.stride()],
        **({} if value.device.type == "cpu" else {"device": str(value.device)}),
    }


def decode(item: Item, sizes: SizeReader, depth: int = 0) -> Any:
    """A fake value from JSON, in the fake mode of `sizes`.

    Raises:
        BundleError: the JSON describes no value.
    """
    if item.value is None or type(item.value) in (bool, int, float):
        return item.value if type(item.value) is not int else item.integer(-(2**63), 2**63 - 1)
    entries = item.entries()
    if "dtype" in entries:
        return _tensor(item, sizes)
    word = next(iter(item.fields((), ("tuple", "list", *_SYMBOLIC))), None)
    if len(entries) != 1 or word is None or depth > MAX_DEPTH:
        item.fail("a value is a number, a tensor, or an object with one field")
    if word in ("tuple", "list"):
        values = [decode(entry, sizes, depth + 1) for entry in entries[word].items()]
        return tuple(values) if word == "tuple" else values
    return sizes.size(entries[word]) if word == "int" else sizes.symbolic(entries[word], word)


def _tensor(item: Item, sizes: SizeReader) -> torch.Tensor:
    fields = item.fields(("dtype", "shape", "stride"), ("device",))
    dtype = DTYPES[fields["dtype"].choice(DTYPES, "dtype")]
    shape = [sizes.size(size, 0) for size in fields["shape"].items()]
    stride = [sizes.size(step, 0) for step in fields["stride"].items(len(shape))]
    device = device_of(fields["device"]) if "device" in fields else torch.device("cpu")
    try:
        # Nothing is decided here: an example's coincidences (two sizes that are equal) must not become facts.
        with sizes.env.suppress_guards(), sizes.mode, torch.no_grad():
            return torch.empty_strided(shape, stride, dtype=dtype, device=device)
    except Exception as problem:  # what torch's meta kernels raise on absurd sizes is not documented
        item.fail(f"this is no tensor: {str(problem).splitlines()[0][:200]}")
