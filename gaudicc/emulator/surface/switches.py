"""What `habana_frameworks.torch.utils.debug` has beside `debug.py`: switches of the graph compiler, and logs.

Source of names: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/debug/__init__.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gaudicc.emulator.emulation import current
from gaudicc.emulator.settings import flag
from gaudicc.emulator.surface.marks import no_op, refused
from gaudicc.emulator.tensor import DEVICE

_PASSES = (
    "_enable_bn_param_recalculation", "_enable_constant_pooling", "_enable_eliminate_common_subexpression",
    "_enable_eliminate_dead_code", "_enable_fuse_bn_relu_optimization", "_enable_fuse_conv_bn_optimization",
    "_enable_fuse_t_mm_optimization", "_enable_peephole_optimization", "_enable_permute_pass",
    "_enable_replace_inplace_ops", "_enable_replace_views", "_disable_bucket_refinement", "_flush_disk_cache",
    "_set_dynamic_mode", "_set_module_name", "clear_dynamic_bucket_recipe_info",
)  # fmt: skip
_LOGS = (
    "_dump_bucket_memory_stat", "_dump_dynamic_shape_memory_stat", "_dump_history_memory_stat", "_dump_memory_reporter",
    "_dump_recipe_memory_stat", "_dump_refined_recipe_stat", "_dump_synapse_recipe_memory_stat", "_hb_print",
    "_mem_log", "_memstat_devmem_start_collect", "_memstat_devmem_stop_collect", "_memstat_livealloc",
    "_towl_configure", "_towl_print",
)  # fmt: skip
_CLOSED = (
    "_get_eager_compiler_unsupported_op_prefixes", "_get_shape_agnostic_unsupported_ops", "load_ds_checkpoint",
    "save_ds_checkpoint",
)  # fmt: skip
_ASKED = (
    "_clear_jit_cache", "_get_jit_cache_size", "_is_enabled_lazy_collectives",
    "_is_enabled_synapse_layout_handling", "_is_enabled_weight_permute_pass", "get_tensor_info",
)  # fmt: skip
__all__ = [*_PASSES, *_LOGS, *_CLOSED, *_ASKED]


def _accepting(name: str, why: str) -> Any:
    def accept(*_: Any, **__: Any) -> None:
        return None

    accept.__name__ = name
    return no_op(why)(accept)


globals().update({name: _accepting(name, "it steers the graph compiler and changes no result") for name in _PASSES})
globals().update({name: _accepting(name, "it writes to a log of the bridge") for name in _LOGS})
globals().update({name: refused(f"utils.debug.{name}", "what it holds is not public") for name in _CLOSED})


def _get_jit_cache_size() -> int:
    """How many recipes are known."""
    return len(current().recipes.known)


def _clear_jit_cache() -> None:
    """Forgets them."""
    current().flush()
    current().recipes.known.clear()


def _is_enabled_synapse_layout_handling() -> bool:
    """Yes."""
    return True


def _is_enabled_weight_permute_pass() -> bool:
    """No."""
    return False


def _is_enabled_lazy_collectives() -> bool:
    """What `PT_HPU_ENABLE_LAZY_COLLECTIVES` says."""
    return flag("PT_HPU_ENABLE_LAZY_COLLECTIVES", False)


def get_tensor_info(tensor: Tensor) -> tuple[int, int] | None:
    """Address and bytes of what a tensor on the device lies in; None off it."""
    if tensor.device.type != DEVICE:
        return None
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
