"""Capture: what surrounds an export: autocast, grad modes, silence, types that the model returns, attention in one piece."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from gaudicc.capture.signature import register_types
from gaudicc.capture.source_lines import running_line
from gaudicc.errors import InputError, UnsupportedInputError, Where


def attention_in_parts(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[Any]:
    """On a GPU torch would pad the mask for a fused kernel even while it exports, and bound sizes by that.

    The op is one node of the graph either way.
    """
    tensors = (*module.parameters(), *pytree.tree_leaves((args, kwargs)))
    on_gpu = any(isinstance(tensor, torch.Tensor) and tensor.is_cuda for tensor in tensors)
    return sdpa_kernel(SDPBackend.MATH) if on_gpu else nullcontext()


def masks_as_given() -> AbstractContextManager[Any]:
    """`nn.TransformerEncoder` and `nn.TransformerDecoder` compare a mask with the causal one, for a faster kernel alone.

    That would decide on data. The mask says the same.
    """
    return patch.object(
        transformer, "_detect_is_causal_mask", lambda mask, is_causal=None, size=None: is_causal is True
    )


@contextmanager
def data_is_the_tensor() -> Iterator[None]:
    """Lets what is written to `x.data` be written to `x`: torch would take it for a constant."""
    plain: Any = torch.Tensor.data

    def data(tensor: torch.Tensor) -> Any:
        return tensor.detach() if isinstance(tensor, (FakeTensor, FunctionalTensor)) else plain.__get__(tensor)

    with patch.object(torch.Tensor, "data", property(data, plain.__set__), create=True):
        yield


@contextmanager
def cast(module: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Lets a model run under autocast, with the lists of the device that it is on."""
    if dtype is None:
        yield
        return
    if dtype not in (torch.bfloat16, torch.float16):
        raise InputError(f"autocast is {dtype}", hint="pass torch.bfloat16 or torch.float16")
    device = next((tensor.device.type for tensor in (*module.parameters(), *module.buffers())), "cpu")
    own = vars(module).get("forward")
    module.forward = torch.autocast(device, dtype)(module.forward)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def no_grad_modes() -> Iterator[None]:
    """Keeps `with torch.no_grad():` out of the graph: it means nothing to inference, and torch.export cuts a graph there."""
    switch = torch._C._set_grad_enabled

    def unseen(enabled: bool) -> None:
        with torch._C.DisableTorchFunction():
            switch(enabled)

    with patch.object(torch._C, "_set_grad_enabled", unseen):
        yield


# These log the traceback of an error that is raised besides.
_TALKATIVE = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch's talk to its own developers off the user's screen: deprecations, and the graph as far as it came."""
    said = io.StringIO()
    graph: Any = ""
    loggers = [log for name in _TALKATIVE if not (log := logging.getLogger(name)).disabled]
    try:
        for log in loggers:
            log.disabled = True
        with warnings.catch_warnings(), redirect_stderr(said):
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except Exception as error:
        graph = getattr(error, "partial_fx_graph", "")
        raise
    finally:
        for log in loggers:
            log.disabled = False
        sys.stderr.write(said.getvalue().replace(f"{graph}\n", "") if graph else said.getvalue())


@contextmanager
def output_types(module: nn.Module) -> Iterator[None]:
    """Registers the dataclasses that the model returns, as it returns them."""
    handle = module.register_forward_hook(lambda _module, _args, output: register_types(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def no_seeds() -> Iterator[None]:
    """Refuses a model that seeds random numbers: the seed would be set while it is captured, and never again."""

    def refuse(*_: Any) -> NoReturn:
        raise UnsupportedInputError(
            "the model calls torch.manual_seed, which is no part of a graph",
            where=Where(source=running_line(), stage="capture"),
            hint="seed before the call, outside the model",
        )

    with patch.object(torch, "manual_seed", refuse), patch.object(torch.random, "manual_seed", refuse):
        yield
