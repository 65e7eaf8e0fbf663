"""Modelled time: what each thing takes, when host and chip wait for each other, and what events say."""

from typing import Any

import pytest
import torch

from gaudicc.emulator import account
from gaudicc.emulator.emulation import current
from gaudicc.emulator.ledger import Kind
from gaudicc.machine import Chip, Gemm, OpClass, OpWork, Workload, load_chip, record_cost, run_cost

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""
EAGER = {"PT_HPU_LAZY_MODE": "0"}


def chip() -> Chip:
    return current().clock.chip


def product(rows: int, depth: int, width: int) -> OpWork:
    moved = 2 * (rows * depth + depth * width)
    return OpWork("mm", OpClass.GEMM, "bf16", Gemm(rows, width, depth), 0, moved, 2 * rows * width)


def operands(rows: int = 256, depth: int = 512, width: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.bfloat16
    return torch.ones(rows, depth, dtype=dtype).to("hpu"), torch.ones(depth, width, dtype=dtype).to("hpu")


def mark_step() -> None:
    from habana_frameworks.torch.core import mark_step

    mark_step()


def test_a_recipe_takes_what_the_machine_model_says_each_time_it_runs() -> None:
    x, w = operands()
    seconds = run_cost(Workload.of([product(256, 512, 1024)]), chip()).device_seconds
    for runs in (1, 2, 3):
        torch.mm(x, w)
        mark_step()
        assert current().clock.busy == pytest.approx(runs * seconds)
        (entry,) = account().entries(Kind.RUN)
        assert (entry.what, entry.count) == ("aten::mm", runs)
        assert entry.seconds == pytest.approx(runs * seconds)
    assert account().count(Kind.COMPILE) == 1
    assert account().seconds(Kind.COMPILE) == record_cost(1, chip()).compile_seconds


def test_engines_overlap_in_one_graph() -> None:
    x, w = operands()
    torch.softmax(torch.mm(x, w), -1)
    mark_step()
    alone = account().seconds(Kind.RUN)
    hidden = chip().host.engine_overlap * min(each.seconds for each in account().entries(Kind.RUN))
    assert alone - hidden < current().clock.busy < alone


def test_views_and_allocations_take_no_time() -> None:
    x, _ = operands()
    before = current().clock.now
    x.view(-1).view(256, 512).t()
    torch.empty(8, device="hpu")
    mark_step()
    assert current().clock.now == before


@pytest.mark.parametrize(
    "environment", [{"GAUDICC_EMULATOR_TARGET": name, **EAGER} for name in ("gaudi2", "gaudi3")], ids=str
)
def test_the_chip_is_the_target(environment: dict[str, str]) -> None:
    torch.mm(*operands())
    expected = run_cost(Workload.of([product(256, 512, 1024)]), load_chip(environment["GAUDICC_EMULATOR_TARGET"]))
    assert current().clock.busy == pytest.approx(expected.device_seconds)


def test_transfers_take_the_link_and_only_reads_wait() -> None:
    host, clock = chip().host, current().clock
    source = torch.ones(2**20)
    x = source.to("hpu")
    link = source.nbytes / host.pcie_bandwidth + host.transfer_latency
    assert account().seconds(Kind.TO_DEVICE) == clock.now == pytest.approx(link)
    y = (x * 2).exp()
    mark_step()
    torch.ones(1).to("hpu")
    assert clock.waiting == 0, "a copy to the device does not wait for the chip"
    (y + 1).cpu()
    assert clock.waiting > 0, "a copy to the host does"
    assert account().seconds(Kind.TO_HOST) == pytest.approx(link)
    y[0].item()
    assert account().seconds(Kind.HOST_READ) == pytest.approx(host.transfer_latency, rel=0.01)


def test_a_fallback_takes_both_ways_and_the_hosts_kernel_and_is_no_work_of_the_chip() -> None:
    x = torch.ones(1000).to("hpu")
    torch.histc(x, 10)
    mark_step()
    host = chip().host
    expected = 2 * host.transfer_latency + 4 * 1010 / host.pcie_bandwidth + 1000 / host.flops
    assert account().seconds(Kind.FALLBACK) == pytest.approx(expected)
    assert (account().count(Kind.RUN), account().count(Kind.COMPILE), current().clock.busy) == (0, 0, 0)


def test_lazy_mode_gathers_and_eager_mode_sends_each_op() -> None:
    x = torch.ones(4).to("hpu")
    before = current().clock.issuing
    ((x + 1) * x).relu()
    mark_step()
    assert current().clock.issuing - before == pytest.approx(3 * chip().host.lazy_op_seconds)


@pytest.mark.parametrize("environment", [EAGER])
def test_eager_mode_sends_each_op(environment: dict[str, str]) -> None:
    x = torch.ones(4).to("hpu")
    ((x + 1) * x).relu()
    assert current().clock.issuing == pytest.approx(3 * chip().host.eager_op_seconds)


@pytest.mark.parametrize("environment", [EAGER])
def test_a_compiled_cluster_is_sent_at_once(environment: dict[str, str]) -> None:
    compiled = torch.compile(lambda x: (x + 1).exp() * x, backend="hpu_backend")
    x = torch.ones(4).to("hpu")
    with torch.no_grad():
        compiled(x)
    assert current().clock.issuing == pytest.approx(chip().host.eager_op_seconds)
    assert {entry.what for entry in account().entries(Kind.RUN)} == {
        "aten::add.Tensor",
        "aten::exp",
        "aten::mul.Tensor",
    }


def test_a_capture_takes_time_once_and_replays_are_cheap_for_the_host() -> None:
    clock, host = current().clock, chip().host
    x, w = operands()
    graph = th.hpu.HPUGraph()
    with th.hpu.graph(graph):
        torch.mm(x, w).relu()
    assert account().seconds(Kind.CAPTURE) == record_cost(2, chip()).capture_seconds
    busy, issuing = clock.busy, clock.issuing
    for replays in (1, 2):
        graph.replay()
        assert clock.busy == pytest.approx((1 + replays) * busy), "a replay runs what the capture ran"
        assert clock.issuing - issuing == pytest.approx(replays * host.replay_seconds)
    assert account().seconds(Kind.REPLAY) == pytest.approx(2 * host.replay_seconds)


def test_a_dry_run_compiles_and_the_chip_does_nothing_before_the_replay() -> None:
    x, w = operands()
    graph = th.hpu.HPUGraph()
    with th.hpu.graph(graph, dry_run=True):
        torch.mm(x, w)
    assert (current().clock.busy, account().count(Kind.RUN), account().count(Kind.COMPILE)) == (0, 0, 1)
    graph.replay()
    assert current().clock.busy > 0


@pytest.mark.parametrize("environment", [{"PT_COMPILE_ONLY_MODE": "1"}])
def test_compiling_only_the_chip_does_nothing(environment: dict[str, str]) -> None:
    torch.mm(*operands())
    mark_step()
    assert (current().clock.busy, account().count(Kind.COMPILE)) == (0, 1)


def test_compile_metrics_are_microseconds() -> None:
    from habana_frameworks.torch.hpu.metrics import metric_global

    (torch.ones(4).to("hpu") + 1).exp()
    mark_step()
    expected = 1e6 * record_cost(2, chip()).compile_seconds
    assert dict(metric_global("graph_compilation").stats())["TotalTime"] == round(expected)


def test_events_mark_modelled_time_and_flush() -> None:
    x, w = operands()
    start, end = th.hpu.Event(enable_timing=True), th.hpu.Event(enable_timing=True)
    torch.mm(x, w)
    start.record()
    assert account().count(Kind.COMPILE) == 1, "recording in the current stream flushes"
    th.hpu.synchronize()
    torch.mm(x, w)
    end.record()
    seconds = run_cost(Workload.of([product(256, 512, 1024)]), chip()).device_seconds
    assert start.elapsed_time(end) == pytest.approx(1e3 * (chip().host.lazy_op_seconds + seconds))


def test_an_event_in_another_stream_flushes_nothing() -> None:
    torch.mm(*operands())
    th.hpu.Event().record(th.hpu.Stream())
    assert account().count(Kind.COMPILE) == 0


def test_work_in_flight_counts_between_events_and_synchronising_waits_for_it() -> None:
    clock = current().clock
    x, w = operands(4096, 4096, 4096)
    start, end = th.hpu.Event(enable_timing=True), th.hpu.Event(enable_timing=True)
    torch.mm(x, w)
    mark_step()
    start.record()
    for _ in range(3):
        torch.mm(x, w)
        mark_step()
    end.record()
    seconds = run_cost(Workload.of([product(4096, 4096, 4096)]), chip()).device_seconds
    assert start.elapsed_time(end) == pytest.approx(3e3 * seconds), "the host runs ahead: its own time is hidden"
    assert clock.waiting == 0
    end.synchronize()
    assert clock.waiting > 3 * seconds - 4 * chip().host.lazy_op_seconds
    before = clock.now
    th.hpu.current_stream().synchronize()
    assert clock.now == before


def lines(kind: Kind) -> list[int]:
    return sorted(int(entry.source.rsplit(":", 1)[1]) for entry in account().entries(kind))


def test_ops_have_the_line_that_gathered_them() -> None:
    x = torch.ones(4).to("hpu")
    first = _here()
    y = x + 1
    y = y.exp()
    mark_step()
    assert lines(Kind.RUN) == [first + 1, first + 2]


@pytest.mark.parametrize("environment", [EAGER])
def test_eager_ops_that_share_a_recipe_have_lines_of_their_own(environment: dict[str, str]) -> None:
    x = torch.ones(4).to("hpu")
    first = _here()
    x + 1
    x + 1
    assert account().count(Kind.COMPILE) == 1
    assert lines(Kind.RUN) == [first + 1, first + 2]


def _here() -> int:
    import sys

    return sys._getframe(1).f_lineno


def test_the_account_says_it() -> None:
    from gaudicc.emulator import report

    x, w = operands()
    torch.mm(x, w).cpu()
    text = report.render()
    assert "ops on the device: 1, " in text
    assert " modelled" in text
    assert text.splitlines()[-1].startswith("Modelled time: ")
    data: Any = report.as_json()
    assert data["modelled_seconds"]["chip"] == current().clock.busy
    (row,) = [row for row in data["entries"] if row["kind"] == "run"]
    assert row["modelled_seconds"] == pytest.approx(current().clock.busy)
