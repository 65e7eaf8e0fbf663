"""Cost of single ops and of workloads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaudicc.errors import InputError
from gaudicc.machine import (
    CHIPS,
    Engine,
    Gemm,
    Mode,
    OpClass,
    OpWork,
    Step,
    Workload,
    decoder_step,
    gemm_seconds,
    known_decoders,
    load_chip,
    op_cost,
    record_cost,
    run_cost,
)

chips = st.sampled_from(CHIPS).map(load_chip)


def vector(op_class: OpClass, elements: int, row_bytes: int = 0) -> OpWork:
    size = 2 * elements
    return OpWork("op", op_class, elements=elements, read_bytes=size, written_bytes=size, row_bytes=row_bytes)


def product(m: int, n: int, k: int, dtype: str = "bf16", batch: tuple[int, ...] = ()) -> OpWork:
    gemm = Gemm(m, n, k, batch, dtype)
    read = (m * k + k * n) * gemm.element_bytes
    return OpWork("product", OpClass.GEMM, dtype, gemm, read_bytes=read, written_bytes=2 * m * n)


@pytest.mark.parametrize("name", CHIPS)
def test_views_are_free(name: str) -> None:
    cost = op_cost(OpWork("view", OpClass.VIEW, read_bytes=1 << 30), load_chip(name))
    assert (cost.engine, cost.seconds) == (Engine.NONE, 0.0)


def test_copies_cost_dma_on_gaudi2_and_tpc_on_gaudi3() -> None:
    copy = vector(OpClass.COPY, 1 << 20)
    assert op_cost(copy, load_chip("gaudi2")).engine is Engine.DMA
    assert op_cost(copy, load_chip("gaudi3")).engine is Engine.TPC


def test_a_tiny_copy_takes_the_dma_minimum() -> None:
    chip = load_chip("gaudi2")
    assert chip.dma is not None
    assert op_cost(vector(OpClass.COPY, 1), chip).seconds == chip.dma.minimum_seconds


@given(chips, st.integers(1, 1 << 24), st.sampled_from([OpClass.ELEMENTWISE, OpClass.SOFTMAX, OpClass.NORM]))
@settings(max_examples=60, deadline=None)
def test_vector_work_is_bound_by_arithmetic_or_memory(chip: object, elements: int, op_class: OpClass) -> None:
    assert isinstance(chip, type(load_chip("gaudi2")))
    cost = op_cost(vector(op_class, elements), chip)
    assert cost.engine is Engine.TPC
    assert cost.seconds == max(cost.compute_seconds, cost.memory_seconds) + chip.host.node_seconds
    assert cost.memory_seconds == pytest.approx(4 * elements / chip.memory.stream)
    inside = op_cost(vector(op_class, elements), chip, on_chip=True)
    assert inside.seconds <= cost.seconds
    assert inside.hbm_bytes == 0


@pytest.mark.parametrize("name", CHIPS)
def test_gathers_of_short_rows_waste_bandwidth(name: str) -> None:
    chip = load_chip(name)
    long, short = (op_cost(vector(OpClass.GATHER, 1 << 22, row_bytes=row), chip).memory_seconds for row in (4096, 64))
    assert short == pytest.approx(4 * long)
    assert long == pytest.approx((4 << 22) / chip.memory.stream / chip.tpc.gather_efficiency)


@pytest.mark.parametrize("name", CHIPS)
def test_gemm_seconds_are_cycles_over_the_sustained_clock(name: str) -> None:
    chip = load_chip(name)
    steps = 2 if name == "gaudi2" else 1
    # One geometry's tile, K long enough that the drain floor does not matter.
    tile = Gemm(512, 512, 4096) if name == "gaudi2" else Gemm(1024, 512, 4096)
    assert gemm_seconds(tile, chip) == pytest.approx(steps * 4096 / (chip.mme.clock_mhz * 1e6 * chip.mme.sustained))


def test_fp8_halves_long_sums_on_gaudi2_and_never_the_drain_floor() -> None:
    chip = load_chip("gaudi2")
    long, short = Gemm(4096, 4096, 8192), Gemm(4096, 4096, 128)
    assert gemm_seconds(replace(long, dtype="fp8"), chip) == pytest.approx(gemm_seconds(long, chip) / 2, rel=0.05)
    assert gemm_seconds(replace(short, dtype="fp8"), chip) == pytest.approx(gemm_seconds(short, chip), rel=0.05)


def test_small_matmuls_of_decoding_are_bound_by_weights() -> None:
    for name in CHIPS:
        cost = op_cost(product(1, 4096, 4096), load_chip(name))
        assert (cost.engine, cost.bound) == (Engine.MME, "memory")


def test_thin_batched_products_leave_the_mme_when_vectors_are_faster() -> None:
    chip = load_chip("gaudi2")
    thin = op_cost(product(1, 1152, 128, batch=(163 * 32,)), chip)
    thick = op_cost(product(128, 1152, 128, batch=(163 * 32,)), chip)
    assert (thin.engine, thick.engine) == (Engine.TPC, Engine.MME)


def test_a_gemm_without_its_product_is_refused() -> None:
    with pytest.raises(ValueError, match="has no gemm"):
        op_cost(OpWork("nothing", OpClass.GEMM), load_chip("gaudi2"))


def test_a_product_of_nothing_takes_no_time() -> None:
    assert [gemm_seconds(Gemm(m, n, k), load_chip("gaudi3")) for m, n, k in ((0, 2, 2), (2, 0, 2), (2, 2, 0))] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("name", CHIPS)
def test_collectives(name: str) -> None:
    chip = load_chip(name)

    def seconds(cards: int, size: int) -> float:
        return op_cost(
            OpWork("sum", OpClass.ALL_REDUCE, read_bytes=size, written_bytes=size, cards=cards), chip
        ).seconds

    assert seconds(1, 1 << 20) == 0.0
    assert seconds(2, 0) == chip.network.latency
    # Twice the links with three chips as with two, and 4/3 of the bytes.
    big = 1 << 34
    assert seconds(3, big) / seconds(2, big) == pytest.approx((4 / 3) / 2, rel=1e-3)


@pytest.mark.parametrize("name", CHIPS)
def test_a_fallback_pays_two_transfers(name: str) -> None:
    chip = load_chip(name)
    op = OpWork("nonzero", OpClass.FALLBACK, elements=1000, read_bytes=4000, written_bytes=4000)
    cost = op_cost(op, chip)
    assert cost.engine is Engine.HOST
    assert cost.seconds > 2 * chip.host.transfer_latency + 8000 / chip.host.pcie_bandwidth
    assert cost.seconds > 10 * op_cost(replace(op, op_class=OpClass.ELEMENTWISE), chip).seconds


# ---------------------------------------------------------------- workloads


@pytest.mark.parametrize("name", CHIPS)
def test_modes_cost_what_the_host_pays(name: str) -> None:
    chip = load_chip(name)
    work = Workload.of([vector(OpClass.ELEMENTWISE, 16)] * 10, 10)
    recorded, lazy, eager = (run_cost(work, chip, mode=mode) for mode in (Mode.RECORDED, Mode.LAZY, Mode.EAGER))
    assert recorded.nodes == 100
    assert recorded.seconds < lazy.seconds < eager.seconds
    assert lazy.host_seconds == pytest.approx(100 * chip.host.lazy_op_seconds)
    assert run_cost(work, chip, graphs=100).host_seconds == pytest.approx(100 * chip.host.replay_seconds)


@given(chips, st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_folding_repeats_changes_nothing(chip: object, repeats: int) -> None:
    assert isinstance(chip, type(load_chip("gaudi2")))
    ops = [product(64, 512, 512), vector(OpClass.SOFTMAX, 4096)]
    folded, written_out = run_cost(Workload.of(ops, repeats), chip), run_cost(Workload.of(ops * repeats), chip)
    assert folded.seconds == pytest.approx(written_out.seconds)
    assert (folded.nodes, folded.flops, folded.hbm_bytes) == (
        written_out.nodes,
        written_out.flops,
        written_out.hbm_bytes,
    )


def test_engines_overlap_by_the_published_part() -> None:
    chip = load_chip("gaudi2")
    both = Workload.of([product(4096, 4096, 4096), vector(OpClass.SOFTMAX, 1 << 24)])
    cost = run_cost(both, chip)
    shorter = min(cost.busy[Engine.MME], cost.busy[Engine.TPC])
    serial = sum(cost.busy.values()) + cost.nodes * chip.host.handoff_seconds
    assert serial - cost.device_seconds == pytest.approx(0.62 * shorter)


def test_recording_an_8b_model_costs_what_the_log_says() -> None:
    cost = record_cost(390, load_chip("gaudi2"))
    assert cost.compile_seconds == pytest.approx(0.39, rel=0.01)
    assert cost.capture_seconds == pytest.approx(0.29, rel=0.01)
    assert cost.graph_bytes == pytest.approx(3.3 * 2**20, rel=0.02)


# ---------------------------------------------------------------- decoders

PARAMETERS = {
    "Llama-2-7B": 6.74e9,
    "Llama-2-70B": 69e9,
    "Llama-3.1-8B": 8.03e9,
    "gpt-j-6b": 6.05e9,
    "gemma-3-27b-it": 27e9,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_a_decode_step_reads_every_weight_once(name: str, parameters: float) -> None:
    model = known_decoders()[name]
    step = decoder_step(model, Step(batch=1, tokens=1, context=1))
    weights = sum(op.weight_bytes * repeats for ops, repeats in step.parts for op in ops)
    tied_or_not = model.vocab * model.hidden
    assert weights / 2 == pytest.approx(parameters, rel=0.02, abs=1.05 * tied_or_not)


def test_prefill_flops_are_twice_parameters_and_attention() -> None:
    model = known_decoders()["Llama-2-7B"]
    tokens = 2048
    step = decoder_step(model, Step(batch=1, tokens=tokens, context=tokens))
    flops = sum(2 * op.gemm.macs * repeats for ops, repeats in step.parts for op in ops if op.gemm)
    attention = 4 * tokens * tokens * model.hidden * model.layers
    assert flops == pytest.approx(2 * 6.48e9 * tokens + attention, rel=0.02)


def test_tensor_parallel_shares_the_work_and_adds_collectives() -> None:
    model = known_decoders()["Llama-2-70B"]
    alone, shared = (decoder_step(model, Step(8, 1, 1024, cards=cards)) for cards in (1, 8))

    def weights(work: Workload) -> int:
        return sum(op.weight_bytes * repeats for ops, repeats in work.parts for op in ops)

    assert weights(shared) == pytest.approx(weights(alone) / 8, rel=0.05)
    reduces = [op for op in shared.parts[1][0] if op.op_class is OpClass.ALL_REDUCE]
    assert len(reduces) == 2


def test_heads_must_divide_over_cards() -> None:
    with pytest.raises(InputError, match="do not divide"):
        decoder_step(known_decoders()["Qwen2-7B"], Step(1, 1, 1, cards=8))
