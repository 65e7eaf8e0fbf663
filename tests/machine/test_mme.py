"""The MME model against the vendor's own predictor, row by row."""

from __future__ import annotations

import csv
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaudicc.machine.chip import load_chip
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.mme import Prediction, predict
from gaudicc.machine.mme_choice import choose, recommend
from gaudicc.machine.mme_geometry import Geometry
from gaudicc.machine.mme_recipe import Walk
from gaudicc.machine.mme_slice import sliced_utilisation
from gaudicc.machine.specs import MmeSpec

DATA = Path(__file__).parent / "data"
Row = dict[str, str]


def rows(name: str) -> list[Row]:
    with (DATA / name).open() as file:
        return list(csv.DictReader(file))


PREDICTIONS = rows("mme_predictions.csv")
UNIT_POINTS = rows("mme_unit_points.csv")


def mme_of(row: Row) -> MmeSpec:
    return load_chip(row["chip"]).mme


def gemm_of(row: Row) -> Gemm:
    return Gemm(
        m=int(row["M"]),
        n=int(row["N"]),
        k=int(row["K"]),
        batch=(int(row["batch"]),),
        dtype=row["dtype"],
        trans_a=row["transA"] == "1",
        trans_b=row["transB"] == "1",
        shared_b=row["bcastB"] == "1",
    )


def same_float32(ours: float, printed: str) -> bool:
    return bool(np.isclose(ours, float(printed), rtol=6e-7, atol=0))


def answer(row: Row, prefix: str) -> tuple[str, str, int]:
    return row[f"{prefix}geometry"], row[f"{prefix}walk"], int(row[f"{prefix}cycles"])


def given_by(prediction: Prediction) -> tuple[str, str, int]:
    return prediction.geometry.value, prediction.walk.value, prediction.cycles


def test_all_rows_are_there() -> None:
    assert len(PREDICTIONS) == 642
    assert len(UNIT_POINTS) == 56


def test_final_choice_equals_the_compilers() -> None:
    for row in PREDICTIONS:
        ours = choose(gemm_of(row), mme_of(row), pipeline_depth=1)
        assert given_by(ours) == answer(row, ""), row
        assert ours.layout.concurrency == int(row["concurrency"]), row
        assert same_float32(ours.utilisation, row["utilisation"]), row


def test_choice_at_the_default_depth_equals_the_compilers() -> None:
    for row in PREDICTIONS:
        ours = choose(gemm_of(row), mme_of(row))
        assert given_by(ours) == answer(row, "pl3_"), row
        assert same_float32(ours.utilisation, row["pl3_utilisation"]), row


def test_advice_equals_the_predictors() -> None:
    for row in PREDICTIONS:
        ours = recommend(gemm_of(row), mme_of(row))
        assert given_by(ours.prediction) == answer(row, "brain_"), row
        assert ours.flattening == int(row["flattening"]), row
        assert same_float32(ours.prediction.utilisation, row["brain_utilisation"]), row


def test_internals_equal_the_predictors() -> None:
    for row in PREDICTIONS:
        mme = mme_of(row)
        ours = choose(gemm_of(row), mme, pipeline_depth=1)
        layout, recipe = ours.layout, ours.recipe
        assert (layout.width, layout.height) == (int(row["geo_width"]), int(row["geo_height"])), row
        assert ours.steps == tuple(int(row[name]) for name in ("fcd_steps", "sp_steps", "batch_steps")), row
        assert layout.chip_ports() == tuple(int(row[f"ports_{operand}"]) for operand in "abc"), row
        assert (recipe.reuse or "-").upper() == row["sb_reuse"], row
        assert (recipe.partial, recipe.partials) == (row["partial_reuse"] == "1", int(row["partials"])), row
        splits = tuple(int(row[name]) for name in ("act_fcd", "act_sp", "act_nonspatial"))
        assert (recipe.splits_n, recipe.splits_m, recipe.splits_k) == splits, row
        assert ours.constrained == int(row["constrained_steps"]), row
        if ours.constrained:
            assert f"{ours.constrained_cost:.6g}" == row["constrained_cost"], row
        reads = ours.reads
        asked = dict(item.split("=") for item in row["bw_attrs"].split(";"))
        for name, pair in (
            ("bw", reads.bandwidth),
            ("chip", reads.chip),
            ("dcore", reads.dcore),
            ("fetch", reads.engine),
        ):
            assert [f"{value:.6g}" for value in pair] == [asked[f"{name}A"], asked[f"{name}B"]], row
        assert ours.cycles / mme.clock_mhz == pytest.approx(float(row["runtime_us"]), rel=6e-6), row


# ---------------------------------------------------------------- the unit-test points


def whole(row: Row) -> Gemm:
    batch = (int(row["batch"]),) if row["batch"] != "1" else ()
    return Gemm(int(row["M"]), int(row["N"]), int(row["K"]), batch, row["dtype"], shared_b="shared B" in row["problem"])


@pytest.mark.parametrize("row", [row for row in UNIT_POINTS if row["granularity_or_slice"].startswith("K1")], ids=str)
def test_solution_points(row: Row) -> None:
    gemm, mme = whole(row), mme_of(row)
    geometry, walk = Geometry(row["geometry"]), Walk(row["walk"])
    prediction = predict(gemm, geometry, walk, mme)
    expected = float(Fraction(row["expected"]))
    if row["attribute"] == "maxUtilization":
        assert prediction.utilisation == pytest.approx(expected, abs=1e-3)
        return
    # The points name only granules: a slice is the largest multiple within a tile, of the batch the least one that
    # fills the concurrent engines.
    _, granule_n, granule_m, granule_b = (int(granule[1:]) for granule in row["granularity_or_slice"].split("/"))

    def fit(size: int, tile: int, granule: int) -> int:
        return min(size, max(tile // granule * granule, granule))

    part = replace(
        gemm,
        n=fit(gemm.n, prediction.layout.width, granule_n),
        m=fit(gemm.m, prediction.layout.height, granule_m),
        batch=(-(-prediction.layout.concurrency // granule_b) * granule_b,),
    )
    assert sliced_utilisation(gemm, part, geometry, walk, mme) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("row", [row for row in UNIT_POINTS if row["test"] == "BrainBwTests"], ids=str)
def test_bandwidth_points(row: Row) -> None:
    batch = 8 if "B=8" in row["granularity_or_slice"] else 1
    piece = Gemm(min(int(row["M"]), 1024), int(row["N"]), int(row["K"]), (batch,), row["dtype"])
    reads = predict(piece, Geometry(row["geometry"]), Walk(row["walk"]), mme_of(row)).reads
    side = "AB".index(row["attribute"][-1])
    ours = reads.bandwidth[side] if row["attribute"].startswith("accessBW") else reads.chip[side]
    assert ours == float(row["expected"])


@pytest.mark.parametrize(
    "row", [row for row in UNIT_POINTS if row["sb_reuse"] == "0" and row["walk"] == "fkc"], ids=str
)
def test_narrow_geometry_point(row: Row) -> None:
    ours = predict(whole(row), Geometry(row["geometry"]), Walk(row["walk"]), mme_of(row), reuse=False)
    assert ours.utilisation == float(row["expected"])


def test_port_limit_point_as_a_gemm() -> None:
    """The convolution of `bert_large_test` is this GEMM; 12/13 holds without reuse only."""
    gemm, mme = Gemm(1536, 1024, 4096), load_chip("gaudi2").mme
    without = predict(gemm, Geometry.WIDE4, Walk.FCK, mme, reuse=False)
    assert without.utilisation == pytest.approx(12 / 13, rel=1e-6)
    assert without.cycles == 53248
    reused = predict(gemm, Geometry.WIDE4, Walk.FCK, mme)
    assert reused.utilisation == pytest.approx(0.8, rel=1e-6)
    assert reused.cycles == 61440


@pytest.mark.parametrize("row", [row for row in UNIT_POINTS if "flattening" in row["test"]], ids=str)
def test_flattening_points(row: Row) -> None:
    gemm = whole(row)
    m, k, n, note = gemm.m, gemm.k, gemm.n, row["granularity_or_slice"]
    if "row stride" in note:
        gemm = replace(gemm, strides_a=(8, 8 * m), strides_c=(1040, 1040 * m))
    elif "A batch-strided" in note:
        gemm = replace(gemm, strides_a=(k, 2 * k * m))
    elif "C batch-strided" in note:
        gemm = replace(gemm, strides_c=(n, 2 * n * m))
    ours = recommend(gemm, mme_of(row))
    if row["attribute"] == "geometry":
        assert ours.prediction.geometry.value == row["expected"]
    else:
        assert ours.flattening == int(row["expected"])


# ---------------------------------------------------------------- laws

gemms = st.builds(
    Gemm,
    m=st.integers(1, 5000),
    n=st.integers(1, 5000),
    k=st.integers(1, 9000),
    batch=st.one_of(st.just(()), st.tuples(st.integers(1, 70)), st.tuples(st.integers(1, 9), st.integers(1, 9))),
    dtype=st.sampled_from(["bf16", "fp8", "fp32"]),
    trans_a=st.booleans(),
    trans_b=st.booleans(),
)
chips = st.sampled_from(["gaudi2", "gaudi3"])


@given(gemms, chips, st.sampled_from(Geometry), st.sampled_from(Walk))
@settings(max_examples=200, deadline=None)
def test_no_geometry_beats_the_peak(gemm: Gemm, chip: str, geometry: Geometry, walk: Walk) -> None:
    mme = load_chip(chip).mme
    ours = predict(gemm, geometry, walk, mme)
    assert ours.cycles * mme.macs_per_cycle >= gemm.macs
    assert 0 < ours.utilisation <= 1
    assert ours.layout.engines == mme.engines


@given(gemms, chips)
@settings(max_examples=100, deadline=None)
def test_a_longer_sum_never_costs_less_at_equal_geometry(gemm: Gemm, chip: str) -> None:
    mme = load_chip(chip).mme
    for geometry in Geometry:
        short = predict(gemm, geometry, Walk.FCK, mme, reuse=False)
        long = predict(replace(gemm, k=2 * gemm.k), geometry, Walk.FCK, mme, reuse=False)
        assert long.cycles >= short.cycles


def test_a_wrapped_step_count_forbids_the_geometry() -> None:
    """The predictor's unsigned subtraction: cycles explode, and the compiler stays away."""
    mme = load_chip("gaudi2").mme
    gemm = Gemm(128, 16384, 65536, trans_b=True)
    forced = predict(gemm, Geometry.WIDE4, Walk.FKC, mme, pipeline_depth=1)
    chosen = choose(gemm, mme)
    assert chosen.cycles < 1 << 32
    assert forced.cycles >= chosen.cycles


def test_the_operand_already_on_chip_decides_between_equals() -> None:
    mme = load_chip("gaudi2").mme
    gemm = Gemm(4096, 4096, 512)
    kept = {choose(gemm, mme, pipeline_depth=1, on_chip=operand).recipe.reuse for operand in ("a", "b")}
    assert kept == {"a", "b"}
