"""`habana_frameworks.torch.hpu`: switches of fused attention."""

from gaudicc.emulator.surface.kernels import recompute_sdp_enabled, sdp_kernel

__all__ = ["recompute_sdp_enabled", "sdp_kernel"]
