"""Simulator and schedulers: a run obeys engines, dependences and memory, and ours comes near the optimum."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaudicc.errors import InputError
from gaudicc.machine import (
    Carried,
    Engine,
    Limits,
    Step,
    Task,
    Timeline,
    decoder_step,
    exact_schedule,
    interval_bound,
    list_schedule,
    load_chip,
    lower_bound,
    op_cost,
    pipeline,
    program_schedule,
    simulate,
    vendor_schedule,
)
from gaudicc.machine.decoder import Decoder
from gaudicc.machine.yardstick import SHAPES, compare, random_bundle, report

MME, TPC = Engine.MME, Engine.TPC


@st.composite
def graphs(draw: st.DrawFn) -> list[Task]:
    count = draw(st.integers(1, 12))
    return [
        Task(
            f"t{i}",
            draw(st.sampled_from([MME, TPC, Engine.DMA, Engine.NETWORK, Engine.HOST])),
            draw(st.integers(0, 20)) / 4,
            tuple(f"t{j}" for j in sorted(draw(st.sets(st.integers(0, i - 1), max_size=3)))) if i else (),
            draw(st.integers(0, 100)),
            bundle=i // 5,
            slice=draw(st.one_of(st.none(), st.integers(0, 3))),
        )
        for i in range(count)
    ]


def check_run(timeline: Timeline, tasks: Sequence[Task], limits: Limits = Limits()) -> None:  # noqa: B008
    ran = {event.task.name: event for event in timeline.events}
    assert set(ran) == {task.name for task in tasks}
    for event in timeline.events:
        assert event.end - event.start >= event.task.seconds - 1e-9
        for source in event.task.after:
            assert event.start >= ran[source].end + limits.handoff - 1e-9
    for engine in Engine:
        mine = sorted((event.start, event.end) for event in timeline.events if event.task.engine is engine)
        assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(mine))
    assert timeline.makespan >= lower_bound(tasks, limits.handoff) - 1e-9
    assert timeline.peak_bytes <= limits.buffer_bytes


@given(graphs(), st.sampled_from([0.0, 0.5]), st.sampled_from([inf, 300.0, 120.0, 50.0]))
@settings(max_examples=80, deadline=None)
def test_every_scheduler_gives_a_valid_run(tasks: list[Task], handoff: float, memory: float) -> None:
    limits = Limits(memory, stream=100.0, handoff=handoff)
    for timeline in (
        program_schedule(tasks, limits),
        vendor_schedule(tasks, limits),
        list_schedule(tasks, limits, restarts=5, swaps=10),
    ):
        check_run(timeline, tasks, limits)


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_ours_is_never_behind_program_order(tasks: list[Task]) -> None:
    assert list_schedule(tasks, restarts=0, swaps=0).makespan <= program_schedule(tasks).makespan + 1e-9


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_busy_overlap_and_exposed_add_up(tasks: list[Task]) -> None:
    timeline = program_schedule(tasks)
    assert timeline.busy(TPC) == pytest.approx(sum(task.seconds for task in tasks if task.engine is TPC))
    assert timeline.overlap() + timeline.exposed() == pytest.approx(timeline.busy(TPC))
    assert 0 <= timeline.overlap_efficiency() <= 1 + 1e-9


def attention(slices: int, scores: float = 2.0, softmax: float = 3.0, values: float = 1.0, size: int = 0) -> list[Task]:
    tasks = []
    for i in range(slices):
        tasks.append(Task(f"scores{i}", MME, scores, (), size, slice=i))
        tasks.append(Task(f"softmax{i}", TPC, softmax, (f"scores{i}",), size, slice=i))
        tasks.append(Task(f"values{i}", MME, values, (f"softmax{i}",), 0, slice=i))
    return tasks


def test_program_order_of_one_slice_is_serial() -> None:
    timeline = program_schedule(attention(1))
    assert timeline.makespan == 6.0
    assert timeline.overlap() == 0.0


def test_the_vendors_policy_overlaps_slices_and_needs_at_least_two() -> None:
    tasks = attention(8)
    one, three = (vendor_schedule(tasks, live_slices=live).makespan for live in (1, 3))
    assert one == pytest.approx(8 * 6.0)
    assert three < 0.7 * one
    on_mme = [name for name in vendor_schedule(tasks).order if not name.startswith("softmax")]
    assert on_mme[:4] == ["scores0", "scores1", "scores2", "values0"]


def test_the_vendors_policy_keeps_bundles_apart() -> None:
    early = [Task(f"a{i}", MME, 1.0, bundle=0) for i in range(3)]
    late = [Task(f"b{i}", MME, 1.0, bundle=1) for i in range(3)]
    order = vendor_schedule([*late, *early]).order
    assert set(order[:3]) == {"a0", "a1", "a2"}


def test_full_memory_holds_tasks_back_before_anything_spills() -> None:
    tasks = attention(6, size=10)
    roomy, tight = (list_schedule(tasks, Limits(memory, 100.0), restarts=0, swaps=0) for memory in (inf, 20.0))
    assert roomy.peak_bytes > 20
    assert tight.peak_bytes <= 20
    assert tight.spilled_bytes == 0
    assert tight.makespan >= roomy.makespan


def test_what_cannot_fit_goes_to_hbm_and_costs_both_ways() -> None:
    tasks = attention(1, size=10)
    spilled = program_schedule(tasks, Limits(5.0, stream=10.0))
    # Scores: written, read; probabilities: written, read; one second each.
    assert spilled.spilled_bytes == 20
    assert spilled.makespan == pytest.approx(6.0 + 4.0)


def test_a_hand_off_is_paid_between_dependent_tasks_only() -> None:
    assert program_schedule(attention(1), Limits(handoff=0.5)).makespan == pytest.approx(7.0)
    free = [Task("a", MME, 1.0), Task("b", MME, 1.0)]
    assert program_schedule(free, Limits(handoff=0.5)).makespan == 2.0


@pytest.mark.parametrize(
    ("tasks", "what"),
    [
        ([Task("a", MME, 1.0), Task("a", MME, 1.0)], "two tasks are called 'a'"),
        ([Task("a", MME, 1.0, ("b",))], "not among the tasks"),
        ([Task("a", MME, 1.0, ("b",)), Task("b", MME, 1.0, ("a",))], "depend on themselves"),
    ],
)
def test_unsound_tasks_are_refused(tasks: list[Task], what: str) -> None:
    for scheduler in (program_schedule, vendor_schedule, list_schedule):
        with pytest.raises(InputError, match=what):
            scheduler(tasks)


def test_unsound_orders_are_refused() -> None:
    tasks = attention(1)
    with pytest.raises(InputError, match="exactly once"):
        simulate(tasks, ["scores0"])
    with pytest.raises(InputError, match="whose result it reads"):
        simulate(tasks, ["softmax0", "scores0", "values0"])


# ---------------------------------------------------------------- the exact method


def brute_force(tasks: list[Task]) -> float:
    """The shortest makespan over all topological orders."""

    def orders(done: list[str]) -> list[list[str]]:
        able = [task.name for task in tasks if task.name not in done and set(task.after) <= set(done)]
        return [rest for name in able for rest in orders([*done, name])] if able else [done]

    return min(simulate(tasks, order).makespan for order in orders([]))


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_exact_equals_brute_force(seed: int) -> None:
    noise = random.Random(seed)
    tasks = [
        Task(
            f"t{i}",
            noise.choice((MME, TPC)),
            noise.randint(1, 9),
            tuple(f"t{j}" for j in range(i) if noise.random() < 0.3),
        )
        for i in range(6)
    ]
    found = exact_schedule(tasks)
    assert found.proved
    assert found.timeline.makespan == pytest.approx(brute_force(tasks))


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_lies_between_bound_and_ours(shape: str) -> None:
    noise = random.Random(11)
    for _ in range(5):
        tasks = random_bundle(noise, shape)
        found = exact_schedule(tasks)
        assert found.proved
        check_run(found.timeline, tasks)
        assert found.timeline.makespan <= list_schedule(tasks, restarts=0, swaps=0).makespan + 1e-9


def test_exact_gives_up_honestly() -> None:
    noise = random.Random(5)
    cut_off = [exact_schedule(random_bundle(noise, "graph"), visits=1) for _ in range(10)]
    assert all(found.visited <= 1 for found in cut_off)
    assert any(not found.proved for found in cut_off) or all(
        found.timeline.makespan == pytest.approx(lower_bound([event.task for event in found.timeline.events]))
        for found in cut_off
    )


def test_an_empty_bundle_is_refused() -> None:
    with pytest.raises(InputError, match="at least one task"):
        exact_schedule([])


def test_ours_against_the_optimum() -> None:
    found = compare(9)
    assert all(row.proved for row in found)
    assert max(row.ours for row in found) <= 1.03
    assert sum(row.ours for row in found) / len(found) <= 1.01
    assert all(row.ours <= row.vendor + 1e-9 for row in found)


@pytest.mark.sweep
def test_ours_against_the_optimum_on_200_bundles() -> None:
    found = compare(200)
    assert all(row.proved for row in found)
    assert max(row.ours for row in found) <= 1.03
    assert sum(row.ours for row in found) / len(found) <= 1.01


def test_the_table_has_a_row_for_each_shape() -> None:
    assert [line.split(" | ")[0] for line in report(3).splitlines()[-4:]] == [
        f"| {shape}" for shape in (*SHAPES, "all")
    ]


# ---------------------------------------------------------------- software pipelining


def test_a_pipeline_of_slices_reaches_the_interval_bound() -> None:
    body = attention(1)
    found = pipeline(body)
    assert found.bound == 3.0
    assert found.interval == pytest.approx(3.0)
    assert found.makespan(1) == pytest.approx(found.length)
    timeline = found.unrolled(20)
    check_run(timeline, [event.task for event in timeline.events])
    assert timeline.makespan == pytest.approx(found.makespan(20))
    assert timeline.overlap_efficiency() > 0.9


def test_a_recurrence_bounds_the_interval() -> None:
    body = attention(1)
    assert interval_bound(body, [Carried("values0", "scores0")]) == pytest.approx(6.0)
    assert interval_bound(body, [Carried("values0", "scores0", 2)]) == pytest.approx(3.0)
    assert pipeline(body, [Carried("values0", "scores0")]).interval == pytest.approx(6.0)


@given(graphs(), st.integers(1, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_pipelines_obey_everything(body: list[Task], distance: int, recurrent: bool) -> None:
    if not any(task.seconds for task in body):
        return
    carried = [Carried(body[-1].name, body[0].name, distance)] if recurrent else []
    found = pipeline(body, carried)
    assert found.interval >= found.bound * (1 - 1e-6)
    timeline = found.unrolled(5)
    check_run(timeline, [event.task for event in timeline.events])
    starts = {event.task.name: event.start for event in timeline.events}
    ends = {event.task.name: event.end for event in timeline.events}
    for edge in carried:
        for i in range(5 - distance):
            assert starts[f"{edge.reader}@{i + distance}"] >= ends[f"{edge.source}@{i}"] - 1e-6


def test_memory_stretches_the_interval() -> None:
    body = attention(1, size=10)
    roomy, tight = pipeline(body), pipeline(body, (), Limits(20.0))
    assert roomy.buffer_bytes() > 20
    assert tight.buffer_bytes() <= 20
    assert tight.interval > roomy.interval


def test_a_body_that_cannot_fit_or_run_is_refused() -> None:
    with pytest.raises(InputError, match="on-chip memory"):
        pipeline(attention(1, size=10), (), Limits(5.0, stream=1.0))
    with pytest.raises(InputError, match="at least one task"):
        pipeline([])
    with pytest.raises(InputError, match="carried dependence"):
        pipeline(attention(1), [Carried("values0", "nothing")])


def test_a_126_layer_prefill_is_scheduled_in_seconds() -> None:
    """Llama-3.1-405B, 4,096 tokens in eight token tiles: layers repeat, so one layer is scheduled."""
    chip = load_chip("gaudi3")
    model = Decoder(16384, 126, 128, 8, 128, 53248, 128256)
    began = perf_counter()
    layer = decoder_step(model, Step(1, 512, 4096, cards=8)).parts[1][0]
    body: list[Task] = []
    for tile in range(8):
        before: tuple[str, ...] = ()
        for op in layer:
            name = f"{op.name}#{tile}"
            cost = op_cost(op, chip)
            body.append(Task(name, cost.engine, cost.seconds, before, slice=tile))
            before = (name,)
    last = layer[-1].name
    layers = pipeline(body, [Carried(f"{last}#{tile}", f"{layer[0].name}#{tile}") for tile in range(8)])
    ours, vendor = list_schedule(body), vendor_schedule(body)
    assert perf_counter() - began < 20
    assert layers.bound * 126 <= layers.makespan(126) <= 1.01 * 126 * ours.makespan
    assert ours.makespan <= vendor.makespan
