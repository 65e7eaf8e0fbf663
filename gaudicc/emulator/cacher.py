"""`ModuleCacher`: graphs for training, one per set of arguments; in eval mode and without gradients it passes through.

Source of names and forms: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/graphs.py`.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from gaudicc.emulator.callables import TensorPacker, make_graphed_callables
from gaudicc.emulator.emulation import current
from gaudicc.emulator.wrapping import input_hash


class ModuleCacher(nn.Module):
    """Puts a cache of graphs in front of a module's `forward`: `ModuleCacher(max_graphs)(model)`.

    Args:
        max_graphs: sets of arguments that get a graph; calls with others run as before, nothing is evicted.
    """

    _plain: nn.Module
    _model: Any

    def __init__(self, max_graphs: int = 10) -> None:
        super().__init__()
        self.max_graphs = max_graphs
        self.model_dict: dict[int, _Graphed] = {}
        self.input_count_dict: Counter[int] = Counter()
        self.priority_keys: list[int] = []
        self.cached_hits_dict: Counter[int] = Counter()
        self.uncached_train_hits = 0
        self.uncached_eval_hits = 0
        self.is_capturing = False
        self.forward_cnt = 0
        self.hpugraph_tracing = False

    def __call__(
        self,
        model: nn.Module,
        use_lfu: bool = False,
        inplace: bool = True,
        allow_unused_input: bool = False,
        asynchronous: bool = False,
        have_grad_accumulation: bool = False,
        log_frequency: int = 100,
        verbose: bool = False,
        disable_tensor_cache: bool = False,
        dry_run: bool = False,
    ) -> nn.Module:
        """Wraps a module.

        Args:
            model: the module.
            use_lfu: only the arguments seen most often between `capture_start` and `capture_end` get graphs.
            inplace: change the module itself, not a shallow copy.
            allow_unused_input: an input may have no gradient.
            asynchronous: accepted, as are the rest.
            log_frequency: accepted.
            verbose: accepted.
            disable_tensor_cache: accepted.
            dry_run: accepted.
            have_grad_accumulation: the first iteration of `set_iteration_count` has graphs of its own.

        Returns:
            The wrapped module.
        """
        changed: Any = model if inplace else copy.copy(model)
        plain = copy.copy(changed)
        object.__setattr__(self, "_plain", plain)
        object.__setattr__(self, "_model", changed)
        self._original = changed.forward
        self._names = _argument_names(plain.forward)
        self._use_lfu, self._accumulates, self._unused = use_lfu, have_grad_accumulation, allow_unused_input
        return self._wrapped(changed)

    def _wrapped(self, changed: Any) -> nn.Module:
        changed.forward = self.forward
        changed.orig_forward = self._original
        changed.set_iteration_count = self.set_iteration_count
        changed.capture_start, changed.capture_end = self.capture_start, self.capture_end
        changed.is_hpugraph_tracing = lambda: self.hpugraph_tracing
        wrapped: nn.Module = changed
        return wrapped

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Replays, captures, or runs as before."""
        arguments = {**self._names, **dict(zip(self._names, args, strict=False)), **kwargs}
        key = input_hash(arguments)
        if self._accumulates and self.forward_cnt == 0:
            key = input_hash((key, 1))
        if self._use_lfu and self.is_capturing:
            self.input_count_dict[key] += 1
        training = self._model.training
        if (
            training
            and torch.is_grad_enabled()
            and current().settings.lazy
            and not (self._use_lfu and self.is_capturing)
        ):
            if key not in self.model_dict and self._may_capture(key):
                self._capture(key, arguments)
            if key in self.model_dict:
                self.cached_hits_dict[key] += 1
                return self.model_dict[key](arguments)
        self.uncached_train_hits += training
        self.uncached_eval_hits += not training
        return self._original(*args, **kwargs)

    def set_iteration_count(self, iter_num: int) -> None:
        """The number of the iteration since gradients were last used."""
        self.forward_cnt = iter_num

    def capture_start(self) -> None:
        """Count sets of arguments from now on."""
        self.is_capturing = True

    def capture_end(self) -> None:
        """The sets seen most often get graphs."""
        self.priority_keys = [key for key, _ in self.input_count_dict.most_common(self.max_graphs)]
        self.input_count_dict.clear()
        self.is_capturing = False

    def _may_capture(self, key: int) -> bool:
        return key in self.priority_keys if self._use_lfu else len(self.model_dict) < self.max_graphs

    def _capture(self, key: int, arguments: dict[str, Any]) -> None:
        self.hpugraph_tracing = True
        try:
            self.model_dict[key] = _Graphed(self._plain, arguments, self._unused)
        finally:
            self.hpugraph_tracing = False


class _Graphed(nn.Module):
    """A module with tensors in and tensors out, so that it can be captured."""

    def __init__(self, model: nn.Module, arguments: dict[str, Any], allow_unused: bool) -> None:
        super().__init__()
        self.model = model
        self.packer = TensorPacker()
        self.results: Any = None
        tensors, self.arguments = self.packer.pack(arguments)
        own = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
        self.train(model.training)
        make_graphed_callables(self, own, allow_unused_input=allow_unused)

    def __call__(self, *args: Any) -> Any:
        if isinstance(args[0], Tensor):  # under capture
            return super().__call__(*args)
        tensors, _ = self.packer.pack(args[0])
        return self.packer.unpack(super().__call__(*tensors), self.results)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The module on tensors."""
        found, self.results = self.packer.pack(self.model(**self.packer.unpack(tensors, self.arguments)))
        return found


def _argument_names(forward: Any) -> dict[str, Any]:
    """Names of a forward's arguments with their defaults.

    Raises:
        AssertionError: it takes positional-only or variable positional arguments.
    """
    names: dict[str, Any] = {}
    for name, parameter in inspect.signature(forward).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise AssertionError(f"Unsupported argument type : {parameter.kind}")
        if parameter.kind is not parameter.VAR_KEYWORD:
            names[name] = parameter.default
    return names
