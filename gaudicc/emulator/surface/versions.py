"""`habana_frameworks.torch.utils.library_loader` and `.version_checker`.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/library_loader.py`; `version_checker` came later, intel/neural-compressor
imports it.
"""

from __future__ import annotations

import torch
from torch.torch_version import TorchVersion

from gaudicc.emulator.surface.marks import no_op

__all__ = ["is_habana_available", "is_pytorch_at_least", "load_habana_module", "load_habana_profiler"]


def is_habana_available() -> bool:
    """Whether there is a card, which the device asks hl-smi."""
    return True


@no_op("the package is one piece here")
def load_habana_module() -> None:
    """Accepted."""


@no_op("nothing is traced; the account says what the device did")
def load_habana_profiler() -> None:
    """Accepted."""


def is_pytorch_at_least(version: str) -> bool:
    """Whether torch's version, without what follows a plus sign, is this one or later."""
    return bool(TorchVersion(torch.__version__.split("+")[0]) >= version)
