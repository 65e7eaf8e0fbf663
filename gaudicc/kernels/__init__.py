"""The semantic ops `gaudicc::*`: words that ATen lacks and that Gaudi has a kernel for.

Each has a schema, a fake implementation and a CPU reference, so that every stage of a program runs on CPU. Importing
this package registers them.
"""

from gaudicc.kernels.attention import attention, sink_attention
from gaudicc.kernels.grouped import grouped_linear
from gaudicc.kernels.moe import moe
from gaudicc.kernels.norm import rms_norm
from gaudicc.kernels.rotary import rotary
from gaudicc.kernels.split import merge_parts, softmax_part, softmax_tile

__all__ = [
    "attention",
    "grouped_linear",
    "merge_parts",
    "moe",
    "rms_norm",
    "rotary",
    "sink_attention",
    "softmax_part",
    "softmax_tile",
]
