"""`wrap_in_hpu_graph`: a cache of HPU graphs in front of a module, with the key and the habits of the real one.

The key is a Python hash, never compared further: per tensor its shape, its view layout and whether autocast is on; dtype,
device and values are no part of it, and any other argument counts by its own hash, so a Python number captures anew at
each value. A hit copies the inputs into the tensors of the first call and gives the same output objects every time.
Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/graphs.py`.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from gaudicc.emulator.emulation import current
from gaudicc.emulator.graph import HPUGraph
from gaudicc.emulator.streams import StreamContext, default_stream
from gaudicc.emulator.tensor import HpuTensor
from gaudicc.targets.calls import tensors_in


@dataclass(frozen=True, slots=True)
class Cached:
    """One captured graph.

    Attributes:
        inputs: the arguments of the first call, which later ones are copied into.
        outputs: what every call gives.
        graph: the recording.
    """

    inputs: object
    outputs: object
    graph: HPUGraph


@dataclass(frozen=True, slots=True)
class Options:
    """How a wrapped function captures and replays; as the arguments of `wrap_in_hpu_graph`."""

    asynchronous: bool = False
    disable_tensor_cache: bool = False
    dry_run: bool = False
    max_graphs: int | None = None


def input_hash(value: object) -> int:
    """The key of a call."""
    autocast = torch.is_autocast_enabled("hpu")
    if isinstance(value, dict):
        return input_hash(tuple(value.items()))
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return hash((tuple(input_hash(item) for item in value), autocast))
    if isinstance(value, Tensor):
        return hash((value.shape, _view_hash(value), autocast))
    if isinstance(value, collections.UserDict):
        return hash(tuple((key, tuple(item)) for key, item in value.items()))
    return hash((value, autocast))


def _view_hash(tensor: Tensor) -> int:
    if not tensor._is_view():
        return 0
    return hash((tensor.stride(), tensor.storage_offset()))


def copy_to(destination: Any, source: Any) -> None:
    """Copies tensors into tensors of a like structure.

    Raises:
        AssertionError: the structures differ in type or keys; their lengths are not compared.
    """
    if type(destination) is not type(source) and not (isinstance(destination, Tensor) and isinstance(source, Tensor)):
        raise AssertionError(f"{type(source).__name__} cannot be copied to {type(destination).__name__}")
    if isinstance(destination, dict):
        for (key, into), (other, new) in zip(destination.items(), source.items(), strict=False):
            if key != other:
                raise AssertionError(f"{other!r} cannot be copied to {key!r}")
            copy_to(into, new)
    elif isinstance(destination, (list, tuple)) and not isinstance(destination, torch.Size):
        for into, new in zip(destination, source, strict=False):
            copy_to(into, new)
    elif isinstance(destination, Tensor) and destination is not source:
        with torch.no_grad():
            destination.copy_(source)


class Wrapper:
    """The cache of one wrapped function.

    Args:
        function: what is captured.
        options: how.
    """

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.function, self.options = function, options
        self.cache: dict[int, Cached] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replays the graph of these arguments, or captures it."""
        warm_up = kwargs.pop("warmup_mode", False)
        if kwargs.pop("bypass_hpu_graphs", False):
            return self.function(*args, **kwargs)
        key = input_hash((args, kwargs))
        kept = list(tensors_in(kwargs.pop("cache_tensors_list", [])))
        cached = self.cache.get(key)
        if cached is None:
            if self.options.max_graphs is not None and len(self.cache) == self.options.max_graphs:
                return self.function(*args, **kwargs)
            return self._capture(key, (args, kwargs), kept)
        if warm_up:
            current().flush()
            return cached.outputs
        self._replay(cached, (args, kwargs))
        return cached.outputs

    @property
    def _by_address(self) -> bool:
        """Whether inputs are bound by address and intermediates freed."""
        asked = os.environ.get("PT_HPUGRAPH_DISABLE_TENSOR_CACHE")
        return self.options.disable_tensor_cache if asked is None else asked == "1"

    def _capture(self, key: int, inputs: tuple[Any, Any], kept: list[Tensor]) -> Any:
        by_address = self._by_address
        dry_run = by_address or self.options.dry_run
        tensors = [tensor for tensor in tensors_in(inputs) if isinstance(tensor, HpuTensor)]
        with StreamContext(default_stream()):
            graph = HPUGraph()
            graph.capture_begin(dry_run=dry_run)
            if by_address:
                graph.mark_user_inputs(tensors)
            try:
                outputs = self.function(*inputs[0], **inputs[1])
            except BaseException:
                graph.reset()  # on the device the capture stays open until Python collects the graph
                raise
            graph.capture_end()
            held: object = inputs
            if by_address:
                graph.mark_user_outputs([*kept, *_all_tensors(outputs)])
                matched = graph.get_user_input_match_indices()
                held = tuple(tensor for at, tensor in enumerate(tensors) if at not in matched)
                graph.replayV3(tensors)
            elif dry_run:
                graph.replay()
            self.cache[key] = Cached(held, outputs, graph)
        return outputs

    def _replay(self, cached: Cached, inputs: object) -> None:
        asynchronous = self.options.asynchronous
        if not self._by_address:
            copy_to(cached.inputs, inputs)
            cached.graph.replay(asynchronous)
            return
        tensors = [tensor for tensor in tensors_in(inputs) if isinstance(tensor, HpuTensor)]
        matched = cached.graph.get_user_input_match_indices()
        copy_to(cached.inputs, tuple(tensor for at, tensor in enumerate(tensors) if at not in matched))
        cached.graph.replayV3(tensors, asynchronous)


def wrap_in_hpu_graph(
    module: nn.Module,
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
    max_graphs: int | None = None,
) -> nn.Module:
    """Puts the cache in front of a module's `forward`.

    Args:
        module: changed in place; gets `clear_cache()` and `clear_inputs()`.
        asynchronous: accepted; every replay is done when it returns.
        disable_tensor_cache: bind inputs by address and free intermediates.
        dry_run: capture without launching, then replay.
        max_graphs: calls that would need one more graph run without any.

    Returns:
        The module.
    """
    wrapper = Wrapper(module.forward, Options(asynchronous, disable_tensor_cache, dry_run, max_graphs))

    @wraps(wrapper.function)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return wrapper(*args, **kwargs)

    def clear_inputs() -> None:
        for cached in wrapper.cache.values():
            cached.graph.clear_inputs()

    changed: Any = module
    changed.forward = forward
    changed.clear_cache = wrapper.cache.clear
    changed.clear_inputs = clear_inputs
    return module


def wrap_in_hpu_graph_func(
    func: Callable[..., Any],
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    dry_run: bool = False,
    max_graphs: int | None = None,
) -> Callable[..., Any]:
    """Puts the cache in front of a function; arguments as for `wrap_in_hpu_graph`."""
    wrapper = Wrapper(func, Options(asynchronous, disable_tensor_cache, dry_run, max_graphs))

    def forward(*args: Any, **kwargs: Any) -> Any:
        return wrapper(*args, **kwargs)

    return forward


def _all_tensors(value: object) -> list[Tensor]:
    """The tensors in a result, through containers and the attributes of plain objects."""
    found = list(tensors_in(value))
    if found or isinstance(value, (Tensor, dict, list, tuple)) or not hasattr(value, "__dict__"):
        return found
    return [tensor for item in vars(value).values() for tensor in _all_tensors(item)]
