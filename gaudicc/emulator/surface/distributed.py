"""`habana_frameworks.torch.distributed.hccl`: several cards, which are not emulated."""

from gaudicc.emulator.surface.marks import refused

__all__ = ["initialize_distributed_hpu"]

initialize_distributed_hpu = refused(
    "distributed.hccl.initialize_distributed_hpu", "one card is emulated, and collectives have no rule yet"
)
