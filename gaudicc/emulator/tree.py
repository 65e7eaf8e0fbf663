"""Which of our modules stand behind which name below `habana_frameworks`, and the finder that serves them to `import`.

Nothing is installed: the modules exist in this process only, once `install` has been called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from gaudicc.emulator import autoload

ROOT = "habana_frameworks"
TORCH = "habana_frameworks.torch"
AUTOLOAD = "habana_frameworks.autoload"
_SURFACE = "gaudicc.emulator.surface"
_HPU = ("device", "memory", "random", "streams", "metrics", "attention")
_LAZY = ("graphs",)
ROTARY = (
    "RotaryPosEmbeddingHelperV1", "RotaryPosEmbeddingHelperV2", "RotaryPosEmbeddingHelperV3", "RotaryPosEmbeddingMode",
    "apply_rotary_pos_emb",
)  # fmt: skip
OPTIMIZERS = ("FusedAdagrad", "FusedAdamW", "FusedLamb", "FusedLars", "FusedResourceApplyMomentum", "FusedSGD")

MODULES: dict[str, tuple[str, ...]] = {
    "": (),
    "activity_profiler": ("profiling:DebugActivity", "profiling:register_habana_activity_profiler"),
    "core": ("core",),
    "core.hccl": ("distributed",),
    "core.quantization": ("core",),
    "core.step_closure": ("core",),
    "core.weight_sharing": ("training:HabanaParameterWrapper", "training:enable_weight_sharing"),
    "distributed": (),
    "distributed.hccl": ("distributed",),
    "dynamo": (),
    "dynamo.compile_backend": (),
    "dynamo.compile_backend.backends": ("analyzer:logger", "compile_entry:hpu_backend"),
    "dynamo.compile_backend.config": ("compile_config",),
    "dynamo.compile_backend.experimental": ("training:enable_compiled_autograd",),
    "dynamo.compile_backend.passes": ("analyzer",),
    "dynamo.compile_backend.shared_layer": ("analyzer",),
    "dynamo.debug_utils": (),
    "dynamo.debug_utils.logger": ("analyzer",),
    "hpex": (),
    "hpex.experimental": (),
    "hpex.experimental.transformer_engine": ("training",),
    "hpex.experimental.transformer_engine.fp8": ("training",),
    "hpex.experimental.transformer_engine.recipe": ("training",),
    "hpex.kernels": ("kernels", "fp8_kernels"),
    "hpex.kernels.CTCLoss": ("kernels:CTCLoss",),
    "hpex.kernels.CustomSoftmax": ("kernels:CustomSoftmax",),
    "hpex.kernels.Fp8FusedSDPA": ("fp8_kernels", "grouped"),
    "hpex.kernels.FusedSDPA": ("kernels:FusedSDPA", "grouped"),
    "hpex.kernels.PySDPA": ("kernels:PySDPA", "kernels:PySDPAHinted"),
    "hpex.kernels.fbgemm": ("fbgemm",),
    "hpex.kernels.RotaryPosEmbeddingHelper": tuple(f"kernels:{name}" for name in ROTARY),
    "hpex.movingavrg": ("optimizers:FusedEMA",),
    "hpex.movingavrg.FusedEMA": ("optimizers:FusedEMA",),
    "hpex.normalization": ("kernels", "optimizers:FusedClipNorm"),
    "hpex.normalization.FusedClipNorm": ("optimizers:FusedClipNorm",),
    "hpex.normalization.FusedRMSNorm": ("kernels:FusedRMSNorm", "kernels:RmsNormBwdMode"),
    "hpex.optimizers": ("optimizers",),
    **{f"hpex.optimizers.{name}": (f"optimizers:{name}",) for name in OPTIMIZERS},
    "hpex.optimizers.MarkstepAdam": ("optimizers:Adam",),
    "hpex.optimizers.MarkstepAdamW": ("optimizers:AdamW",),
    "hpex.optimizers.distributed": ("training:FusedAdamW",),
    "hpu": _HPU,
    "hpu.events": ("streams",),
    "hpu.graphs": _LAZY,
    "hpu.memory": ("memory",),
    "hpu.metrics": ("metrics",),
    "hpu.metrics.metrics": ("metrics",),
    "hpu.random": ("random",),
    "hpu.streams": ("streams",),
    "internal": (),
    "internal.bridge_config": ("debug",),
    "low_overhead_profiler": (),
    "low_overhead_profiler.profiler": ("profiling:start", "profiling:stop", "profiling:flush"),
    "profiler": (),
    "profiler.ProfilerApi": ("profiling:setup_profiler", "profiling:start_profiler", "profiling:stop_profiler"),
    "utils": (),
    "utils._debug_C": tuple(
        f"logs:{name}"
        for name in ("enable_logging", "get_pt_logging_levels", "is_log_python_enabled", "log_level", "log_python")
    ),
    "utils.debug": ("debug", "switches", "logs:Logger"),
    "utils.debug.dynamo_utils": ("analyzer",),
    "utils.debug.logger": ("logs:Logger", "logs:enable_logging", "logs:get_log_level"),
    "utils.distributed_utils": ("distributed",),
    "utils.event_dispatcher": ("dispatcher",),
    "utils.experimental": ("debug", "recompilation", "experimental"),
    "utils.experimental.detect_recompilation": ("recompilation",),
    "utils.internal": ("internal",),
    "utils.library_loader": (
        "versions:is_habana_available",
        "versions:load_habana_module",
        "versions:load_habana_profiler",
    ),
    "utils.profiler": ("profiling",),
    "utils.version_checker": ("versions:is_pytorch_at_least",),
}
"""Name below `habana_frameworks.torch` -> files of `surface` whose `__all__`, or one name, it shows, the later ones winning."""

_MEDIA = "pictures are decoded by hardware of the card; use a DataLoader of torch here"
_PT2E = "quantisation through torch.export has no public kernels to follow"
_PASSES = "the passes of hpu_backend are its own; placement and clusters are emulated"
ABSENT: dict[str, str] = {
    f"{ROOT}.mediapipe": _MEDIA,
    f"{ROOT}.medialoaders": _MEDIA,
    f"{TORCH}._hpex_C": "it is the vendor's compiled code; `hpex` has the Python names",
    f"{TORCH}.core.quantize_pt2e": _PT2E,
    f"{TORCH}.core.quantizer": _PT2E,
    f"{TORCH}.core.torch_overwrites": "it keeps names of modules for the vendor's own logs",
    f"{TORCH}.dynamo.compile_backend._passes": _PASSES,
    f"{TORCH}.dynamo.compile_backend.partition_fn": _PASSES,
    f"{TORCH}.dynamo.compile_backend.random_utils": _PASSES,
    f"{TORCH}.gpu_migration": "it turns calls of torch.cuda into calls of the device; name hpu in the program instead",
    f"{TORCH}.utils.lib_utils": "it builds C++ ops against the vendor's headers",
}
"""Modules that a Gaudi's software has and that nothing stands behind here: full name -> why."""

HOOKS: dict[str, str] = {
    "hpex.experimental.transformer_engine": "training:refused_name",
    "hpex.experimental.transformer_engine.fp8": "training:refused_name",
    "hpex.experimental.transformer_engine.recipe": "training:refused_name",
    "hpu": "device:late_attribute",
    "internal.bridge_config": "debug:bridge_setting",
}
"""Modules that answer for names which are not listed: name -> the function asked."""

REACHED: dict[str, dict[str, str]] = {
    "": {"torch": "torch"},
    "core": {"hpu": f"{TORCH}.hpu", "htdebug": f"{TORCH}.utils.debug", "htexp": f"{TORCH}.utils.experimental"},
    "utils.experimental": {"hpu": f"{TORCH}.hpu", "htmem": f"{TORCH}.hpu.memory"},
}
"""Modules that a module imports for itself, and that programs reach through it: name -> attribute -> module."""

AT_ONCE = (
    "core", "core.quantization", "core.step_closure",
    "distributed.hccl", "hpu", "hpu.events", "hpu.memory", "hpu.random", "hpu.metrics", "hpu.streams", "utils.internal",
    "utils.debug", "utils.event_dispatcher", "utils.experimental", "internal.bridge_config",
)  # fmt: skip
"""Imported together with `habana_frameworks.torch`."""


class Finder(MetaPathFinder, Loader):
    """Makes the modules when they are first imported.

    Args:
        bring_up: called before the first one below `habana_frameworks.torch` is filled.
    """

    def __init__(self, bring_up: Callable[[], object]) -> None:
        self._bring_up = bring_up

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """The spec of one of our names, or None."""
        if fullname in (ROOT, AUTOLOAD) or _below(fullname) in MODULES:
            inner = any(name.startswith(f"{_below(fullname)}.") for name in MODULES)
            return ModuleSpec(fullname, self, is_package=fullname in (ROOT, TORCH) or inner)
        if fullname in ABSENT:
            raise ModuleNotFoundError(f"{fullname} is not emulated: {ABSENT[fullname]}", name=fullname)
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill one module."""
        module.__doc__ = f"`{module.__name__}` as gaudicc emulates it; nothing here speaks to a Gaudi."
        name = _below(module.__name__)
        if module.__name__ == AUTOLOAD:
            module.__dict__.update({key: getattr(autoload, key) for key in autoload.__all__})
        if name is None:
            return
        for attribute, other in REACHED.get(name, {}).items():
            setattr(module, attribute, importlib.import_module(other))
        if name == "":
            self._bring_up()
            for part in (*AT_ONCE, *(f"hpu.{each}" for each in _only_lazy())):
                importlib.import_module(f"{TORCH}.{part}")
            return
        for inner in _files_of(name):  # before a class of the same name takes its place
            importlib.import_module(f"{TORCH}.{inner}")
        fill(module, name)


def fill(module: ModuleType, name: str) -> None:
    """Give a module its names.

    Args:
        module: the module.
        name: its name below `habana_frameworks.torch`.
    """
    for key, value in symbols(name).items():
        setattr(module, key, value)
    if name in HOOKS:
        file, function = HOOKS[name].split(":")
        module.__dict__["__getattr__"] = getattr(importlib.import_module(f"{_SURFACE}.{file}"), function)


def symbols(name: str) -> dict[str, Any]:
    """What a module below `habana_frameworks.torch` shows, by name."""
    files = MODULES[name] + (_only_lazy() if name == "hpu" else ())
    found: dict[str, Any] = {}
    for each in files:
        file, _, only = each.partition(":")
        source = importlib.import_module(f"{_SURFACE}.{file}")
        found.update({key: getattr(source, key) for key in ([only] if only else source.__all__)})
    return found


def _only_lazy() -> tuple[str, ...]:
    """What `hpu` has in lazy mode only."""
    from gaudicc.emulator.emulation import current

    return _LAZY if current().settings.lazy else ()


def _files_of(name: str) -> list[str]:
    """Modules directly in a package that are named like a class, as the files of `hpex.kernels` are."""
    return [each for each in MODULES if each.rpartition(".")[0] == name and each.rpartition(".")[2][:1].isupper()]


def _below(name: str) -> str | None:
    """`core` for `habana_frameworks.torch.core`, "" for `habana_frameworks.torch`, None for any other name."""
    if name == TORCH:
        return ""
    return name.removeprefix(f"{TORCH}.") if name.startswith(f"{TORCH}.") else None


def loaded() -> bool:
    """Whether a module named `habana_frameworks` has been imported, ours or not."""
    return ROOT in sys.modules
