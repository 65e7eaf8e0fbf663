"""`habana_frameworks.torch.utils.library_loader` and `.version_checker`.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/library_loader.py`; `version_checker` came later, intel/neural-compressor
imports it.
"""

from __future__ import annotations

import torch
from torch.torch_version import TorchVersion

__all__ = ["is_habana_available", "is_pytorch_at_least"]


def is_habana_available() -> bool:
    """Whether there is a card, which the device asks hl-smi."""
    return True


def is_pytorch_at_least(version: str) -> bool:
    """Whether torch's version, without what follows a plus sign, is this one or later."""
    return bool(TorchVersion(torch.__version__.split("+")[0]) >= version)
