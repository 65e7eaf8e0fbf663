"""`habana_frameworks.torch.hpex.kernels.fbgemm`: indices of features that vary in number.

Source of names and forms: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpex/kernels/fbgemm.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gaudicc.emulator.surface.marks import refused

__all__ = [
    "bounds_check_indices",
    "expand_into_jagged_permute",
    "permute_1D_sparse_data",
    "permute_2D_sparse_data",
    "split_embedding_codegen_lookup_function",
]

_WHY = "it serves recommendation models, with kernels of its own"
bounds_check_indices = refused("hpex.kernels.fbgemm.bounds_check_indices", _WHY)
permute_1D_sparse_data = refused("hpex.kernels.fbgemm.permute_1D_sparse_data", _WHY)
permute_2D_sparse_data = refused("hpex.kernels.fbgemm.permute_2D_sparse_data", _WHY)
split_embedding_codegen_lookup_function = refused("hpex.kernels.fbgemm.split_embedding_codegen_lookup_function", _WHY)


def expand_into_jagged_permute(
    permute: Tensor, input_offsets: Tensor, output_offsets: Tensor, output_size: int
) -> Tensor:
    """Where each element comes from when groups of elements are permuted.

    Args:
        permute: `[groups]`, the group that goes to each place.
        input_offsets: `[groups + 1]`, where each group begins before.
        output_offsets: `[groups + 1]`, where each group begins afterwards.
        output_size: elements in all.

    Returns:
        `[output_size]`, positions before.
    """
    places = torch.arange(output_size, device=permute.device)
    group = torch.searchsorted(output_offsets, places, right=True) - 1
    return input_offsets[permute][group] + places - output_offsets[group]
