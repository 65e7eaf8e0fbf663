"""fp8: casts that saturate, matrix products, softmax and sum.

e4m3 ends at 240 on Gaudi2 and at 448 on Gaudi3. A scale is applied in the input's dtype when casting to fp8, in the
output's when casting from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gaudicc.emulator.emulation import current
from gaudicc.emulator.generator import hpu_generator

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FP8 = (E4M3, E5M2)
_MANTISSA = {E4M3: 3, E5M2: 2}
_LOWEST_EXPONENT = {E4M3: -6, E5M2: -14}

Scale = Tensor | float | Sequence[float] | None
Shape = Sequence[int] | None


def largest(dtype: torch.dtype) -> float:
    """The value at which a cast to an fp8 dtype saturates."""
    return 240.0 if dtype is E4M3 and current().settings.target == "gaudi2" else torch.finfo(dtype).max


def as_fp8(values: Tensor, dtype: torch.dtype, stochastic: bool = False) -> Tensor:
    """Values rounded to fp8, to the nearest or by chance to one of the two neighbours, saturated at the ends."""
    wide = values.to(torch.float32)
    if stochastic and not values.is_meta:
        exponent = torch.frexp(wide)[1].sub(1).clamp(min=_LOWEST_EXPONENT[dtype]).to(torch.float32)
        step = torch.exp2(exponent - _MANTISSA[dtype])
        chance = torch.rand(wide.shape, generator=hpu_generator())
        wide = torch.where(wide.isfinite(), (wide / step + chance).floor() * step, wide)
    return wide.clamp(-largest(dtype), largest(dtype)).to(dtype)


def scaled(values: Tensor, scale: Scale, shape: Shape) -> Tensor:
    """Values times a scale in their dtype."""
    if scale is None:
        return values
    factor = torch.as_tensor(scale, dtype=torch.float32, device=values.device).to(values.dtype)
    return values * (factor if shape is None else factor.reshape(tuple(shape)))


def cast_to_fp8_v2(
    input: Tensor,
    scale: Scale = None,
    stochastic_rounding: bool = False,
    is_amax: bool = False,
    dtype: torch.dtype | None = None,
    scale_shape: Shape = None,
) -> tuple[Tensor, Tensor]:
    """fp8 values, and the largest magnitude of the input (0-d, or without elements when it is not asked for).

    Raises:
        RuntimeError: an fp8 input with another dtype asked for, or with the magnitude.
    """
    goal = dtype or E5M2
    if input.dtype in FP8:
        if is_amax:
            raise RuntimeError("CastToFp8V2 must have no amax for float8.")
        if input.dtype is not goal:
            raise RuntimeError(
                "CastToFp8V2 input and output must have the same dtype for float8, but are "
                f"{_name(input.dtype)} and {_name(goal)}"
            )
        return input.clone(), torch.empty(0, device=input.device)
    amax = input.abs().amax().to(torch.float32) if is_amax else torch.empty(0, device=input.device)
    return as_fp8(scaled(input, scale, scale_shape), goal, stochastic_rounding), amax


def cast_to_fp8_hybrid(
    input: Tensor,
    scale_152: Tensor | None = None,
    scale_143: Tensor | None = None,
    stochastic_rounding: bool = False,
    is_amax: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The input in e5m2 and in e4m3, rounded by chance in e5m2 only, and its largest magnitude."""
    low, amax = cast_to_fp8_v2(input, scale_152, stochastic_rounding, is_amax, E5M2)
    return low, cast_to_fp8_v2(input, scale_143, False, False, E4M3)[0], amax


def cast_from_fp8(input: Tensor, scale: Scale, out_dtype: torch.dtype, scale_shape: Shape = None) -> Tensor:
    """The values in another dtype, scaled there."""
    return scaled(input.to(out_dtype), scale, scale_shape)


def fp8_gemm_v2(
    A: Tensor,
    trans_A: bool,
    B: Tensor,
    trans_B: bool,
    D: Tensor | None,
    out_dtype: torch.dtype,
    A_scale_inv: Scale = None,
    B_scale_inv: Scale = None,
    bias: Tensor | None = None,
    accumulate: bool = False,
    B_scale_shape: Shape = None,
) -> Tensor:
    """A times B, both scaled back, plus bias, plus D if it accumulates."""
    left, right = A.to(torch.float32), B.to(torch.float32)
    left = left.transpose(-2, -1) if trans_A else left
    right = right.transpose(-2, -1) if trans_B else right
    product = scaled(torch.matmul(left, right), A_scale_inv, None)
    product = scaled(product, B_scale_inv, None if B_scale_shape is None or len(B_scale_shape) > 2 else B_scale_shape)
    product = product if bias is None else product + bias
    product = product + D if accumulate and D is not None else product
    return product.to(out_dtype)


def cast_to_fp8(
    input: Tensor, scale: Tensor | None, stochastic_rounding: bool, out: Tensor, amax: Tensor
) -> tuple[Tensor, Tensor]:
    """The cast of older programs: writes values and largest magnitude."""
    values, largest_magnitude = cast_to_fp8_v2(input, scale, stochastic_rounding, True, out.dtype)
    return out.copy_(values), amax.copy_(largest_magnitude)


def fp8_gemm(
    A: Tensor,
    trans_A: bool,
    B: Tensor,
    trans_B: bool,
    D: Tensor,
    out_dtype: torch.dtype,
    A_scale_inv: Tensor | None,
    B_scale_inv: Tensor | None,
    bias: Tensor | None,
    accumulate: bool,
    out: Tensor,
) -> Tensor:
    """The product of older programs: writes it."""
    return out.copy_(fp8_gemm_v2(A, trans_A, B, trans_B, D, out_dtype, A_scale_inv, B_scale_inv, bias, accumulate))


def conv2d_fp8(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    out_dtype: torch.dtype | None = None,
    scale_input: Scale = None,
    scale_weight: Scale = None,
) -> Tensor:
    """A convolution of fp8 values, scaled back; bfloat16 unless told otherwise."""
    wide = input.to(torch.float32), weight.to(torch.float32)
    result = functional.conv2d(*wide, None, tuple(stride), tuple(padding), tuple(dilation), groups)
    result = scaled(scaled(result, scale_input, None), scale_weight, None)
    if bias is not None:
        result = result + bias.to(torch.float32).view(1, -1, 1, 1)
    return result.to(out_dtype or torch.bfloat16)


def softmax_fp8(
    input: Tensor,
    dim: int,
    input_scale: Scale = None,
    output_scale: Scale = None,
    inv_attn_heads: Scale = None,
    fused_add: Tensor | None = None,
) -> Tensor:
    """softmax(input * heads * scale + add): e4m3 when an output scale is given, else bfloat16."""
    values = scaled(scaled(input.to(torch.float32), inv_attn_heads, None), input_scale, None)
    values = values if fused_add is None else values + fused_add
    result = torch.softmax(values, dim).to(torch.bfloat16)
    return result if output_scale is None else as_fp8(scaled(result, output_scale, None), E4M3)


def sum_fp8(
    self: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The sum in the input's dtype unless told otherwise."""
    dims = tuple(dim) if dim else tuple(range(self.dim()))
    return self.to(torch.float32).sum(dims, keepdim).to(out_dtype or self.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).replace("torch.f", "F")


def _with_scales(name: str, before: str, tail: str, result: str, kinds: dict[str, str]) -> list[str]:
    return [f"{name}{overload}({before}{scale}{tail}) -> {result}" for overload, scale in kinds.items()]


_TO = ", bool stochastic_rounding=False, bool is_amax=False, ScalarType dtype=None, int[]? scale_shape=None"
_GEMM = "Tensor A, bool trans_A, Tensor B, bool trans_B, Tensor? D, ScalarType out_dtype, "
_CONV = (
    "Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, "
    "int groups=1, ScalarType? out_dtype=None, "
)
_CASTS = {"": "Tensor? scale=None", ".scalar": "float scale", ".scalar_list": "float[] scale"}

OPS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_with_scales("cast_to_fp8_v2", "Tensor input, ", _TO, "(Tensor, Tensor)", _CASTS), cast_to_fp8_v2),
    **dict.fromkeys(
        _with_scales(
            "cast_from_fp8",
            "Tensor input, ",
            ", ScalarType out_dtype, int[]? scale_shape=None",
            "Tensor",
            {"": "Tensor? scale", ".scalar": "float scale", ".scalar_list": "float[] scale"},
        ),
        cast_from_fp8,
    ),
    "cast_to_fp8_hybrid(Tensor input, Tensor? scale_152=None, Tensor? scale_143=None, bool stochastic_rounding=False, "
    "bool is_amax=False) -> (Tensor, Tensor, Tensor)": cast_to_fp8_hybrid,
    **dict.fromkeys(
        _with_scales(
            "fp8_gemm_v2",
            _GEMM,
            ", Tensor? bias=None, bool accumulate=False, int[]? B_scale_shape=None",
            "Tensor",
            {
                "": "Tensor? A_scale_inv=None, Tensor? B_scale_inv=None",
                ".scalar": "float A_scale_inv, float B_scale_inv",
                ".scalar_list": "float[] A_scale_inv, float[] B_scale_inv",
            },
        ),
        fp8_gemm_v2,
    ),
    **dict.fromkeys(
        _with_scales(
            "conv2d_fp8",
            _CONV,
            "",
            "Tensor",
            {
                "": "Tensor? scale_input=None, Tensor? scale_weight=None",
                ".scalar": "float scale_input=1.0, float scale_weight=1.0",
            },
        ),
        conv2d_fp8,
    ),
    **dict.fromkeys(
        _with_scales(
            "softmax_fp8",
            "Tensor input, int dim, ",
            ", Tensor? fused_add=None",
            "Tensor",
            {
                "": "Tensor? input_scale=None, Tensor? output_scale=None, Tensor? inv_attn_heads=None",
                ".Scalar_scales": "float input_scale, float output_scale, Tensor? inv_attn_heads=None",
                ".Scalar": "float input_scale, float output_scale, float inv_attn_heads",
            },
        ),
        softmax_fp8,
    ),
    "cast_to_fp8(Tensor input, Tensor? scale, bool stochastic_rounding, Tensor(a!) out, Tensor(b!) amax) -> "
    "(Tensor(a!), Tensor(b!))": cast_to_fp8,
    f"fp8_gemm({_GEMM.replace('?', '')}Tensor? A_scale_inv, Tensor? B_scale_inv, Tensor? bias, bool accumulate, "
    "Tensor(a!) out) -> Tensor(a!)": fp8_gemm,
    "sum_fp8(Tensor self, int[1]? dim=None, bool keepdim=False, ScalarType? out_dtype=None) -> Tensor": sum_fp8,
}
