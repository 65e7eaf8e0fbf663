"""Bundle: the allow-list. A name in a file becomes a function here, or the file is refused.

ATen ops are listed one by one: they compute tensors from tensors, on the CPU, and touch no file and no other process.
Left out are training, sparse, quantised and vendor kernels, and whatever reads or writes outside its arguments
(`from_file`, `save`, `_print`). Ops that write to an argument are refused by their schema.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gaudicc.bundle.item import Item, error
from gaudicc.nodes import CALLS, call_loop, call_region

_ATEN = """
abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr adjoint affine_grid_generator
alias alias_copy all allclose alpha_dropout amax amin aminmax angle any arange arccos arccosh arcsin arcsinh arctan
arctan2 arctanh argmax argmin argsort argwhere as_strided as_strided_copy as_strided_scatter asin asinh atan atan2
atanh atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm bernoulli
bilinear binary_cross_entropy binary_cross_entropy_with_logits bincount bitwise_and bitwise_left_shift bitwise_not
bitwise_or bitwise_right_shift bitwise_xor blackman_window block_diag bmm broadcast_tensors broadcast_to bucketize
cartesian_prod cat cdist ceil celu chain_matmul chalf channel_shuffle cholesky cholesky_inverse cholesky_solve chunk
clamp clamp_max clamp_min clip clone col2im column_stack combinations complex concat concatenate conj conj_physical
constant_pad_nd contiguous conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d
convolution copy copysign corrcoef cos cosh cosine_embedding_loss cosine_similarity count_nonzero cov cross
cross_entropy_loss ctc_loss cummax cummin cumprod cumsum cumulative_trapezoid deg2rad det detach detach_copy diag
diag_embed diagflat diagonal diagonal_copy diagonal_scatter diff digamma dist div divide dot dropout dsplit dstack
einsum elu embedding embedding_bag empty empty_like empty_permuted empty_strided eq equal erf erfc erfinv exp exp2
expand expand_as expand_copy expm1 eye feature_alpha_dropout feature_dropout fft_fft fft_fft2 fft_fftfreq fft_fftn
fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn
fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill fix flatten flip fliplr flipud
float_power floor floor_divide fmax fmin fmod frac fractional_max_pool2d fractional_max_pool3d frexp frobenius_norm
full full_like gather gcd ge gelu geqrf ger glu gradient greater greater_equal grid_sampler grid_sampler_2d
grid_sampler_3d group_norm gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh
heaviside hinge_embedding_loss histc histogram histogramdd hsplit hstack huber_loss hypot i0 igamma igammac im2col
imag index index_add index_copy index_fill index_put index_reduce index_select inner instance_norm inverse is_complex
is_floating_point is_nonzero is_same_size is_signed isclose isfinite isin isinf isnan isneginf isposinf isreal istft
item kaiser_window kl_div kron kthvalue l1_loss layer_norm lcm ldexp le leaky_relu lerp less less_equal lgamma lift
lift_fresh lift_fresh_copy linalg__powsum linalg_cholesky linalg_cholesky_ex linalg_cond linalg_cross linalg_det
linalg_diagonal linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh linalg_householder_product linalg_inv
linalg_inv_ex linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor
linalg_lu_factor_ex linalg_lu_solve linalg_matmul linalg_matrix_exp linalg_matrix_norm linalg_matrix_power
linalg_matrix_rank linalg_multi_dot linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex
linalg_solve_triangular linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot
linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_sigmoid_forward log_softmax logaddexp
logaddexp2 logcumsumexp logdet logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lstm_cell
lt lu_solve lu_unpack mH mT margin_ranking_loss masked_fill masked_scatter masked_select matmul matrix_H matrix_exp
matrix_power max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median meshgrid min minimum mish mm mode moveaxis
movedim mse_loss msort mul multi_margin_loss multilabel_margin_loss multilabel_margin_loss_forward multinomial
multiply mv mvlgamma nan_to_num nanmean nanmedian nanquantile nansum narrow narrow_copy native_batch_norm
native_channel_shuffle native_dropout native_group_norm native_layer_norm native_norm ne neg negative new_empty
new_empty_strided new_full new_ones new_zeros nextafter nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward
nll_loss_nd nonzero nonzero_numpy nonzero_static norm normal not_equal nuclear_norm numel one_hot ones ones_like orgqr
ormqr outer pad pad_sequence pairwise_distance pdist permute permute_copy pinverse pixel_shuffle pixel_unshuffle
poisson poisson_nll_loss polar polygamma positive pow prelu prod put qr quantile rad2deg rand rand_like randint
randint_like randn randn_like randperm ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu
relu6 remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape
reshape_as resolve_conj resolve_neg rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round row_stack
rrelu rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select
select_copy select_scatter selu sgn sigmoid sign signbit silu sin sinc sinh slice slice_copy slice_inverse
slice_scatter slogdet smooth_l1_loss soft_margin_loss softmax softplus softshrink sort special_digamma special_entr
special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1 special_gammainc
special_gammaincc special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr
special_log_softmax special_logit special_logsumexp special_multigammaln special_ndtr special_ndtri special_polygamma
special_psi special_round special_sinc special_softmax special_xlog1py special_xlogy special_zeta split
split_with_sizes split_with_sizes_copy sqrt square squeeze squeeze_copy stack std std_mean stft sub subtract sum
sum_to_size svd swapaxes swapdims sym_constrain_range sym_constrain_range_for_size sym_numel sym_size
sym_storage_offset sym_stride t t_copy take take_along_dim tan tanh tensor_split tensordot threshold tile to topk
trace transpose transpose_copy trapezoid triangular_solve tril tril_indices triplet_margin_loss triu triu_indices
true_divide trunc type_as unbind unbind_copy unflatten unfold unfold_copy unique_consecutive unique_dim
unique_dim_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
vander var var_mean vdot view view_as view_as_complex view_as_complex_copy view_as_real view_as_real_copy view_copy
vsplit vstack where xlogy zero zeros zeros_like __and__ __lshift__ __or__ __rshift__ __xor__ _adaptive_avg_pool2d
_adaptive_avg_pool3d _aminmax _assert_async _assert_scalar _assert_tensor_metadata _cdist_forward _chunk_cat _conj
_conj_physical _convolution _embedding_bag _embedding_bag_forward_only _euclidean_dist _fft_c2c _fft_c2r _fft_r2c
_functional_assert_async _functional_assert_scalar _fused_rms_norm _grouped_mm _int_mm _is_all_true _is_any_true
_linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd _local_scalar_dense _log_softmax _logcumsumexp
_masked_softmax _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training
_native_multi_head_attention _neg_view _pad_circular _pad_enum _pdist_forward _prelu_kernel _reshape_alias
_reshape_copy _safe_softmax _scaled_dot_product_attention_math _scaled_dot_product_efficient_attention
_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
_scaled_dot_product_fused_attention_overrideable _scaled_grouped_mm _scaled_mm _shape_as_tensor _softmax _stack
_to_copy _transform_bias_rescale_qkv _transformer_encoder_layer_fwd _trilinear _unique _unique2 _unsafe_index
_unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate _unsafe_view _upsample_bicubic2d_aa
_upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
_weight_int4pack_mm _weight_int4pack_mm_for_cpu _weight_int8pack_mm _weight_norm _weight_norm_interface
"""
ATEN = frozenset(_ATEN.split())

# Arithmetic on sizes, and how tuples are taken apart.
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg")},
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{name: getattr(torch, name) for name in ("sym_float", "sym_int", "sym_max", "sym_min", "sym_not", "sym_ite")},
}
_UNARY = ("neg", "not_", "sym_not", "sym_int", "sym_float", "math.ceil", "math.floor", "math.trunc")
ARITY: Mapping[str, int] = {name: 1 if name in _UNARY else 3 if name == "sym_ite" else 2 for name in FUNCTIONS}
REGION_CALLS = {"call_region": call_region, "call_loop": call_loop}
# Ops that run graphs which are handed to them: the bodies are in the same file and checked like all others.
CONTROL_FLOW = ("cond", "while_loop", "scan")

_NAMES = {function: name for name, function in FUNCTIONS.items()}


def name_of(target: object) -> str | None:
    """The name of a call's target in a bundle, or None when no bundle can hold it."""
    if target in CALLS:
        return str(target.__name__)
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    return _NAMES.get(target) if callable(target) else None


def resolve(item: Item) -> Callable[..., Any]:
    """The function that a name stands for.

    Raises:
        BundleError: the name is not on the allow-list, or this torch lacks the op.
    """
    name = item.text()
    if name in REGION_CALLS:
        return REGION_CALLS[name]
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    if namespace == "higher_order" and rest in CONTROL_FLOW:
        found: Callable[..., Any] = getattr(torch.ops.higher_order, rest)
        return found
    packet, _, overload = rest.partition(".")
    if namespace == "aten" and packet in ATEN:
        return _overload(item, getattr(torch.ops.aten, packet, None), overload)
    if namespace == "gaudicc" and packet.isidentifier() and not packet.startswith("_"):
        import gaudicc.kernels  # noqa: F401  registers the semantic ops; programs without them need none

        return _overload(item, getattr(torch.ops.gaudicc, packet, None), overload)
    raise error(f"the op {name[:80]!r} is not on the allow-list of bundles", item.place)


def _overload(item: Item, packet: object, overload: str) -> torch._ops.OpOverload:
    known = packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else []
    if overload not in known:
        item.fail(f"torch {torch.__version__} has no op {item.text()[:80]!r}")
    op: torch._ops.OpOverload = getattr(packet, overload)
    if op._schema.is_mutable:
        item.fail(f"the op {item.text()[:80]!r} writes to its arguments; bundles hold functional programs only")
    return op
