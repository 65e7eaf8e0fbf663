"""From ops as the device sees them to the work that the machine model prices."""

import pytest
import torch

from gaudicc.emulator.pricing import Form, GatheredOp, price_of
from gaudicc.machine import Gemm, OpClass, OpWork, Workload, load_chip, run_cost
from gaudicc.machine.attention import AttentionShape
from gaudicc.machine.split import unsplit_works

IN_THIS_PROCESS = True
CHIP = load_chip("gaudi3")
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


def form(*shape: int, dtype: torch.dtype = BF16) -> Form:
    return Form(shape, dtype, tuple(torch.empty(shape, device="meta").stride()))


def seconds(name: str, args: tuple[object, ...], *results: Form, int64: bool = False) -> float:
    return price_of([GatheredOp(name, args, results, "")], CHIP, int64=int64).seconds


def expected(*works: OpWork) -> float:
    return run_cost(Workload.of(works), CHIP).device_seconds


def vector(op_class: OpClass, elements: int, read: int, written: int, dtype: str = "bf16", row: int = 0) -> OpWork:
    return OpWork("", op_class, dtype, None, elements, read, written, 0, row)


def test_writing_in_place_costs_what_the_functional_op_costs() -> None:
    cache, index, rows = form(1 << 16, 128), form(4, dtype=torch.int32), form(4, 128)
    written = seconds("aten::index_copy_", (cache, None, index, rows), cache)
    assert written == seconds("aten::index_copy", (cache, None, index, rows), cache)
    assert written < seconds("aten::add_.Tensor", (cache, cache), cache) / 2, "only the rows written are moved"


def test_names_of_the_device() -> None:
    image, filters, result = form(1, 8, 16, 16), form(4, 8, 3, 3), form(1, 4, 14, 14)
    device = seconds("aten::convolution_overrideable", (image, filters, None), result)
    assert device == seconds("aten::convolution", (image, filters, None), result)
    x, index, new = form(4096, 64), (form(8, dtype=torch.int32),), form(8, 64)
    put = seconds("aten::_index_put_impl_", (x, index, new), x)
    assert put == seconds("aten::index_put", (x, index, new), x)
    assert put < seconds("aten::relu", (x,), x)


def test_a_transposed_convolution_is_the_one_whose_gradient_it_is() -> None:
    small, filters, big = form(1, 8, 14, 14), form(8, 4, 3, 3), form(1, 4, 16, 16)
    turned = seconds("aten::convolution", (small, filters, None, (), (), (), True), big)
    assert turned == seconds("aten::convolution", (big, filters, None, (), (), (), None), small)


def test_fp8_product_in_either_order() -> None:
    left, right, result = form(64, 512, dtype=FP8), form(1024, 512, dtype=FP8), form(64, 1024)
    found = seconds("hpu::fp8_gemm_v2", (left, None, right, True, None), result)
    work = OpWork(
        "", OpClass.GEMM, "fp8", Gemm(64, 1024, 512, (), "fp8", trans_b=True), 0, 64 * 512 + 1024 * 512, 2 * 65536
    )
    assert found == pytest.approx(expected(work))


def test_fused_attention_is_two_products_and_a_softmax() -> None:
    q, k = form(2, 4, 3, 64, 32), form(2, 4, 1, 96, 32)
    found = seconds("hpu::sdpa_recomp_fwd", (q, k, k), q)
    assert found == pytest.approx(expected(*unsplit_works(AttentionShape(2, 12, 4, 64, 96, 32, 32))))
    flat, keys = form(2, 12, 64, 32), form(2, 4, 96, 32)
    assert seconds("hpu::sdpa_fwd", (flat, keys, keys), flat) == found


def test_experts_read_all_weights_and_compute_the_choices() -> None:
    hidden, table, weights = form(16, 64), form(16, 2, dtype=torch.int32), form(16, 2)
    up, down = (form(64, 256),) * 8, (form(256, 64),) * 8
    found = seconds("hpu::mixture_of_experts", (hidden, table, weights, up, up, down), hidden)
    works = [
        OpWork("", OpClass.GEMM, "bf16", Gemm(4, width, depth, (8,)), 0, 16 * (4 * depth + depth * width), 64 * width)
        for depth, width in ((64, 256), (64, 256), (256, 64))
    ]
    assert found == pytest.approx(expected(*works))


def test_wide_dtypes_are_as_wide_as_on_the_device() -> None:
    def add(dtype: torch.dtype, *, int64: bool = False) -> float:
        x = form(1 << 20, dtype=dtype)
        return seconds("aten::add.Tensor", (x, x), x, int64=int64)

    assert add(torch.float64) == add(torch.float32)
    assert add(torch.int64) == add(torch.int32) < add(torch.int64, int64=True)
    assert add(torch.int16) == add(torch.uint16) < add(torch.int32)


def test_lists_of_tensors_are_read_whole() -> None:
    x = form(1 << 16)
    both = seconds("aten::cat", ((x, x), None), form(1 << 17))
    moved = 2 * (1 << 18)
    assert both == pytest.approx(expected(vector(OpClass.COPY, 1 << 17, moved // 2, moved // 2)))


def test_what_costs_nothing_is_no_op_of_the_device() -> None:
    x = form(4, 4)
    price = price_of([GatheredOp("aten::_unsafe_view", (x,), (x,), "")], CHIP, int64=False)
    assert (price.seconds, price.nodes, price.parts) == (0.0, 0, ())
