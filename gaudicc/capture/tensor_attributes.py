"""Capture: a plain tensor of a module that forward writes to, as `self.cache_k[:, start:end] = k`, is a buffer for that time.

To torch.export it is a constant, which must not change. It is state all the same, kept from call to call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gaudicc.errors import UnsupportedInputError, Where

_WRITTEN = re.compile(r"Constant (\S+) is mutated")
Attribute = tuple[nn.Module, str]


def written_attributes(module: nn.Module, error: RuntimeError) -> list[Attribute]:
    """The tensors that have to be buffers after an error of torch; none if it says something else.

    All of one name in modules of one class: layers have one each, and torch names the first.

    Raises:
        UnsupportedInputError: the tensor that is written is no attribute of a module.
    """
    if (found := _WRITTEN.search(str(error))) is None:
        return []
    path, _, name = found[1].rpartition(".")
    owner = dict(module.named_modules()).get(path)
    if owner is None or not _is_plain_tensor(owner, name):
        raise UnsupportedInputError(
            f"the model writes to {found[1]}, a tensor that it does not hold as a buffer",
            where=Where(stage="capture"),
            hint="self.register_buffer(name, tensor, persistent=False), or hand it in as an argument and return it",
        ) from error
    return [(part, name) for part in module.modules() if type(part) is type(owner) and _is_plain_tensor(part, name)]


def _is_plain_tensor(owner: nn.Module, name: str) -> bool:
    return isinstance(vars(owner).get(name), torch.Tensor)


@contextmanager
def as_buffers(attributes: list[Attribute]) -> Iterator[None]:
    """Holds tensors as buffers that are not part of the state dict, and puts them back."""
    held = [(owner, name, vars(owner).pop(name)) for owner, name in attributes]
    for owner, name, tensor in held:
        owner.register_buffer(name, tensor, persistent=False)
    try:
        yield
    finally:
        for owner, name, tensor in held:
            delattr(owner, name)
            setattr(owner, name, tensor)
