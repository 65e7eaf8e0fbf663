"""`habana_frameworks.torch.dynamo.compile_backend.config`: switches of `hpu_backend`, of which one is heeded here.

Source of names and defaults: HabanaAI/gaudi-pytorch-bridge 1.19.0, `dynamo/compile_backend/config.py`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

MODULE = "habana_frameworks.torch.dynamo.compile_backend.config"
_DEFAULTS: dict[str, tuple[str, Any]] = {
    "decomposition_mode": ("PT_HPU_COMPILE_DECOMPOSITION_MODE", "habana"),
    "discard_frozen_params": ("PT_HPU_COMPILE_DISCARD_FROZEN_PARAMS", False),
    "enable_allreduce_graph_split": ("PT_HPU_ENABLE_ALLREDUCE_GRAPH_SPLIT", True),
    "enable_sfg": ("PT_HPU_ENABLE_SFG", False),
    "force_static_compile": ("PT_HPU_FORCE_STATIC_COMPILE", False),
    "inference": ("PT_HPU_USE_INFERENCE_COMPILER", True),
    "keep_input_mutations": ("PT_HPU_KEEP_INPUT_MUTATIONS", True),
    "reassign_copy_": ("PT_HPU_REASSIGN_COPY_", True),
    "reassign_full_copy": ("PT_HPU_REASSIGN_FULL_COPY", True),
    "reinplace_add": ("PT_HPU_REINPLACE_ADD", True),
    "remove_unnecessary_clones": ("PT_HPU_COMPILE_REMOVE_UNNECESSARY_CLONES", True),
    "use_boxed_input": ("PT_HPU_USE_BOXED_INPUT", True),
    "use_compiled_recipes": ("PT_HPU_COMPILE_USE_RECIPES", True),
    "use_cpp_partitioner": ("PT_HPU_USE_CPP_PARTITIONER", True),
    "use_eager_fallback": ("PT_HPU_USE_EAGER_FALLBACK", True),
    "use_graph_freezing": ("PT_HPU_COMPILE_GRAPH_FREEZE", False),
    "use_inplace_allreduce": ("PT_HPU_USE_INPLACE_COLLECTIVE", True),
    "use_inplace_index_copy": ("PT_HPU_USE_INPLACE_INDEX_COPY", True),
}


class _Flags:
    """The switches by name, as an older form of the interface has them."""

    def __getitem__(self, name: str) -> Any:
        return value(name)

    def __setitem__(self, name: str, new: Any) -> None:
        setattr(_module(), name, new)


configuration_flags = _Flags()


def value(name: str) -> Any:
    """The present value of a switch: programs set it as an attribute of the module."""
    return getattr(_module(), name)


def patch(changes: dict[str, Any] | None = None, **more: Any) -> Any:
    """A block, or a decorator, in which switches have other values.

    Raises:
        AttributeError: there is no such switch.
    """
    new = {**(changes or {}), **more}
    if unknown := set(new) - set(_DEFAULTS):
        raise AttributeError(f"{MODULE} has no {', '.join(sorted(unknown))}")
    return _patched(new)


@contextmanager
def _patched(new: dict[str, Any]) -> Iterator[None]:
    module = _module()
    before = {name: getattr(module, name) for name in new}
    for name, each in new.items():
        setattr(module, name, each)
    try:
        yield
    finally:
        for name, each in before.items():
            setattr(module, name, each)


def _module() -> ModuleType:
    return importlib.import_module(MODULE)


def _from_environment(variable: str, default: Any) -> Any:
    text = os.environ.get(variable, "")
    if not text or not isinstance(default, bool):
        return text or default
    return text.lower() in ("on", "1", "yes", "true", "y", "t")


SWITCHES = {name: _from_environment(*source) for name, source in _DEFAULTS.items()}
globals().update(SWITCHES)
__all__ = ["configuration_flags", "patch", *SWITCHES]
