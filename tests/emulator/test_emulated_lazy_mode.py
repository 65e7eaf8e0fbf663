"""Rules 23 to 26: flushes, recipes, metrics."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""
CACHE = {"PT_HPU_ENABLE_CACHE_METRICS": "1"}
EAGER = {**CACHE, "PT_HPU_LAZY_MODE": "0"}
ENVIRONMENT = CACHE


def stats(name: str) -> dict[str, Any]:
    from habana_frameworks.torch.hpu.metrics import metric_global

    return dict(metric_global(name).stats())


def step(size: int, sums: int = 1) -> None:
    """Two copies in, some ops, one copy out: one flush."""
    a, b = torch.rand(2, size).to("hpu"), torch.rand(2, size).to("hpu")
    product, total = a * b, a
    for _ in range(sums):
        total += b
    (total * product).cpu()


# rule 23
def test_new_shapes_compile_and_repeats_hit() -> None:
    last = 0
    for number, size in enumerate((1, 2, 3), start=1):
        step(size)
        found = stats("graph_compilation")
        assert (found["TotalNumber"], stats("recipe_cache")["TotalMiss"]) == (number, number)
        assert found["TotalTime"] > last
        last = found["TotalTime"]
    for hits in (1, 2):
        step(2)
        assert stats("graph_compilation")["TotalTime"] == last
        assert stats("recipe_cache")["TotalHit"] == hits


def test_the_graphs_form_is_the_key() -> None:
    step(2)
    step(2, sums=2)
    assert stats("graph_compilation")["TotalNumber"] == 2, "another op sequence"
    x, y = torch.ones(2).to("hpu"), torch.ones(2).to("hpu")
    for left, right in ((x, y), (y, x), (x, x)):
        (left - right).cpu()
    assert stats("recipe_cache")["TotalMiss"] == 4, "x-y and y-x are the same graph, x-x is not"
    (x.to(torch.bfloat16)).cpu()
    (x.to(torch.float16)).cpu()
    assert stats("recipe_cache")["TotalMiss"] == 6, "another dtype"
    for value in (2.0, 3.0):
        (x * value).cpu()
    assert stats("recipe_cache")["TotalMiss"] == 8, "a Python number is part of the graph"
    (torch.ones(2, 2).to("hpu").t() + 1).cpu()
    (torch.ones(2, 2).to("hpu") + 1).cpu()
    assert stats("recipe_cache")["TotalMiss"] == 10, "other strides"


def test_copies_to_the_device_and_allocations_compile_nothing() -> None:
    torch.ones(3).to("hpu")
    torch.empty(3, device="hpu")
    torch.ones(3).to("hpu").view(3, 1).cpu()
    assert stats("graph_compilation")["TotalNumber"] == 0


def test_what_flushes() -> None:
    import habana_frameworks.torch.core as htcore

    x = torch.ones(2).to("hpu")
    flushes = [htcore.mark_step, th.hpu.synchronize, lambda: x.cpu(), lambda: x.sum().item(), lambda: x.to("cpu")]
    for number, flush in enumerate(flushes, start=1):
        for _ in range(number):
            x = x + 1
        assert stats("graph_compilation")["TotalNumber"] == number - 1
        flush()
        assert stats("graph_compilation")["TotalNumber"] == number
    htcore.mark_step()
    assert stats("graph_compilation")["TotalNumber"] == number, "nothing was gathered"


@pytest.mark.parametrize("environment", [{"PT_HPU_MAX_COMPOUND_OP_SIZE": "4"}])
def test_a_full_graph_flushes_by_itself(environment: dict[str, str]) -> None:
    x = torch.ones(2).to("hpu")
    for _ in range(8):
        x = x + 1
    found = stats("recipe_cache")
    assert (found["TotalMiss"], found["TotalHit"]) == (1, 1)


@pytest.mark.parametrize("environment", [EAGER])
def test_eager_mode_looks_up_every_op(environment: dict[str, str]) -> None:
    import habana_frameworks.torch.core as htcore

    x = torch.ones(2).to("hpu")
    for _ in range(3):
        x = x + 1
    htcore.mark_step()
    found = stats("recipe_cache")
    assert (found["TotalMiss"], found["TotalHit"]) == (1, 2)
    assert not hasattr(th.hpu, "HPUGraph"), "recorded graphs exist in lazy mode only"


def test_step_closures_run_after_the_step() -> None:
    import habana_frameworks.torch.core as htcore

    seen: list[int] = []
    htcore.add_step_closure(seen.append, (3,))
    assert seen == []
    htcore.mark_step()
    htcore.mark_step()
    assert seen == [3]


# rules 24 and 25
def test_names_of_the_metrics() -> None:
    assert set(stats("graph_compilation")) == {"TotalNumber", "TotalTime", "AvgTime"}
    os.environ["PT_HPU_METRICS_GC_DETAILS"] = "1"
    assert "recipe" in stats("graph_compilation")
    assert set(stats("recipe_cache")) == {"TotalHit", "TotalMiss", "RecipeHit", "RecipeMiss"}
    assert set(stats("cpu_fallback")) == {"TotalNumber", "FallbackOps"}
    assert set(stats("memory_defragmentation")) == {"TotalNumber", "TotalSuccessful", "AvgTime", "MaxTime"}
    torch.histc(torch.ones(3, device="hpu"), 2)
    assert stats("cpu_fallback") == {"TotalNumber": 1, "FallbackOps": {"aten::histc": 1}}


def test_local_contexts_count_inside_and_nest() -> None:
    from habana_frameworks.torch.hpu.metrics import MetricNotFound, metric_global, metric_localcontext

    def number(metric: Any) -> int:
        return int(dict(metric.stats())["TotalNumber"])

    step(1)
    with metric_localcontext("graph_compilation") as outer:
        step(2)
        with metric_localcontext("graph_compilation") as inner:
            step(3)
        step(4)
    step(5)
    assert (number(inner), number(outer), stats("graph_compilation")["TotalNumber"]) == (1, 3, 5)
    metric_global("graph_compilation").reset()
    assert stats("graph_compilation")["TotalNumber"] == 0
    assert metric_global("no such metric") is None
    with pytest.raises(MetricNotFound), metric_localcontext("no such metric"):
        pass


def test_event_dispatcher_publishes_under_real_names() -> None:
    from habana_frameworks.torch.utils.event_dispatcher import EventDispatcher, EventId

    seen: list[str] = []
    th.hpu.init()
    dispatcher = EventDispatcher.instance()
    handles = [
        dispatcher.subscribe(event, lambda _, p: seen.append(dict(p).get("recipe_id", "-"))) for event in EventId
    ]
    step(2)
    assert seen == ["recipe_0", "-", "-"], "a miss, a compilation, a step"
    for handle in handles:
        dispatcher.unsubscribe(handle)
    step(3)
    assert len(seen) == 3


# rule 26
@pytest.mark.parametrize("form", ["json", "text"])
def test_metrics_dump(tmp_path: Path, form: str) -> None:
    from gaudicc.emulator import metrics

    file = tmp_path / "deep" / f"metric.{form}"
    os.environ.update(
        PT_HPU_METRICS_FILE=str(file), PT_HPU_METRICS_FILE_FORMAT=form, RANK="3",
        PT_HPU_METRICS_DUMP_TRIGGERS="process_exit,metric_change",
    )  # fmt: skip
    manager = metrics._Manager()
    written = file.with_name(f"metric-rank3.{form}")
    manager._at_exit()
    assert not written.exists(), "the device was never used"
    manager.saver.enable()
    for size in (1, 2, 3):
        step(size)
    manager._at_exit()
    text = written.read_text()
    if form == "json":
        entries = json.loads(text)
        assert entries[-4]["metric_name"] == "graph_compilation"
        assert [entry["triggered_by"] for entry in entries] == ["metric_change"] * 6 + ["process_exit"] * 4
        assert entries[-4]["statistics"]["TotalNumber"] == 3
    else:
        assert text.count("Metric name:") == 10
        assert "\tTotalNumber: 3\n" in text
    second = metrics._Manager()
    second.saver.enable()
    second._at_exit()
    assert written.with_name(f"{written.name}.1").exists(), "a file is never overwritten"
    assert written.read_text() == text


def test_metrics_dump_by_the_user(tmp_path: Path) -> None:
    from habana_frameworks.torch.hpu.metrics import metrics_dump

    metrics_dump(str(tmp_path / "now.json"))
    assert [entry["triggered_by"] for entry in json.loads((tmp_path / "now.json").read_text())] == ["user"] * 4


def test_forgotten_recipes_compile_again() -> None:
    from habana_frameworks.torch.utils.debug import _bridge_cleanup

    step(2)
    _bridge_cleanup()
    step(2)
    assert stats("recipe_cache")["TotalMiss"] == 2
