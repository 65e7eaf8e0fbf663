"""What `habana_frameworks.torch.utils.experimental` has beside `utils.debug`.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/experimental/__init__.py`; `_set_is_dynamic_quantization` and
`_set_scale_attributes` came later, intel/neural-compressor calls them.
"""

from __future__ import annotations

from typing import Any

from gaudicc.emulator.surface.marks import no_op

__all__ = ["_compute_stream", "_is_fp16_supported", "_set_is_dynamic_quantization", "_set_scale_attributes"]


def _is_fp16_supported() -> bool:
    """Yes: only the first Gaudi had no float16."""
    return True


def _compute_stream() -> int:
    """The handle of the default stream."""
    return 0


@no_op("it tells the graph compiler where scales come from, and changes no result")
def _set_is_dynamic_quantization(dynamic: bool) -> None:
    """Accepted; later than release 1.19."""


@no_op("it tells the graph compiler where scales come from, and changes no result")
def _set_scale_attributes(*args: Any) -> None:
    """Accepted; later than release 1.19."""
