"""`habana_frameworks.torch.hpu`: switches of fused attention."""

from gaudicc.emulator.surface.kernels import enable_recompute_sdp, recompute_sdp_enabled, sdp_kernel

__all__ = ["enable_recompute_sdp", "recompute_sdp_enabled", "sdp_kernel"]
