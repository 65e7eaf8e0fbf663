"""gaudicc compiles PyTorch models for inference on Intel Gaudi.

The public names are loaded when first used, so that `gaudicc --help` does not pay for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaudicc.capture.hosting import on_host
    from gaudicc.checker import check
    from gaudicc.compiled import CompiledModel
    from gaudicc.compiler import compile
    from gaudicc.lm import compile_lm
    from gaudicc.loading import load

__all__ = ["CompiledModel", "check", "compile", "compile_lm", "load", "on_host"]

_HOMES = {
    "compile": "compiler",
    "CompiledModel": "compiled",
    "load": "loading",
    "check": "checker",
    "on_host": "capture.hosting",
    "compile_lm": "lm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gaudicc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gaudicc.{_HOMES[name]}"), name)
