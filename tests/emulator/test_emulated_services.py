"""Rules 13, 14, 28, 29, 31 to 33: streams, events, random numbers, memory, autocast."""

from pathlib import Path
from typing import Any

import pytest
import torch

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""


# rules 28 and 29
def test_streams_and_events() -> None:
    first, second = th.hpu.Event(enable_timing=True), th.hpu.Event(enable_timing=True)
    assert first.query()
    assert first.event_id != second.event_id
    first.record()
    second.record()
    assert first.elapsed_time(second) > 0
    stream = th.hpu.Stream()
    same = th.hpu.Stream(stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type)
    assert same == stream != th.hpu.Stream()
    assert stream.id() == stream.stream_id
    with th.hpu.stream(stream):
        assert th.hpu.current_stream() == stream
        stream.wait_stream(th.hpu.default_stream())
    assert th.hpu.current_stream() == th.hpu.default_stream()
    generic = torch.Stream("hpu")
    assert isinstance(generic, torch.Stream)
    assert generic.stream_id not in (stream.stream_id, th.hpu.default_stream().stream_id)
    assert generic == th.hpu.Stream(stream_id=generic.stream_id)
    marks = [torch.Event("hpu", enable_timing=True) for _ in range(2)]
    assert marks[0].event_id != marks[1].event_id
    marks[0].record(generic)
    marks[1].record()
    assert marks[0].elapsed_time(marks[1]) > 0
    assert torch.Stream(stream_id=3, device_index=0, device_type=1).stream_id == 3, "any other is torch's own"


# rule 31
def test_seeds() -> None:
    torch.manual_seed(7)
    assert torch.equal(th.hpu.random.get_rng_state(), torch.get_rng_state())
    before = torch.get_rng_state()
    th.hpu.manual_seed(3)
    torch.rand(4, device="hpu")
    torch.nn.functional.dropout(torch.ones(4, device="hpu"))
    th.hpu.seed()
    assert torch.equal(torch.get_rng_state(), before), "the CPU's sequence is its own"
    dropped = []
    for seed in (5, 6):  # of the host's generator, which is not asked
        torch.default_generator.manual_seed(seed)
        th.hpu.manual_seed(3)
        dropped.append(torch.nn.functional.dropout(torch.ones(64, device="hpu")).cpu())
    assert torch.equal(*dropped)
    torch.manual_seed(7)
    first = torch.randn(3, device="hpu").cpu()
    assert not torch.equal(first, torch.randn(3, device="hpu").cpu())
    torch.manual_seed(7)
    assert torch.equal(first, torch.randn(3, device="hpu").cpu())
    state = th.hpu.get_rng_state()
    with torch.random.fork_rng():
        torch.rand(2, device="hpu")
    assert torch.equal(th.hpu.get_rng_state(), state)
    with torch.random.fork_rng(device_type="cuda"):
        torch.rand(2, device="hpu")
    assert not torch.equal(th.hpu.get_rng_state(), state)
    generator = torch.Generator(device="hpu").manual_seed(5)
    assert generator.device.type == "hpu"
    drawn = torch.rand(2, device="hpu", generator=generator).cpu()
    assert torch.equal(drawn, torch.rand(2, generator=torch.Generator().manual_seed(5)))


# rule 32
def test_memory_statistics() -> None:
    memory = th.hpu.memory
    names = "Limit InUse MaxInUse NumAllocs NumFrees ActiveAllocs MaxAllocSize TotalSystemAllocs TotalSystemFrees"
    assert set(memory.memory_stats()) == {*names.split(), "TotalActiveAllocs"}
    start = memory.memory_allocated()
    x = torch.zeros(1000, device="hpu")
    view = x.view(10, 100)
    assert memory.memory_allocated() - start == 4000, "a view holds no memory of its own"
    y = x + 1
    del y
    assert memory.memory_allocated() - start == 4000
    assert memory.max_memory_allocated() - start == 8000
    memory.reset_peak_memory_stats()
    assert memory.max_memory_allocated() - start == 4000
    del x
    assert memory.memory_allocated() - start == 4000, "the view still holds it"
    del view
    assert memory.memory_allocated() == start
    assert memory.mem_get_info() == (memory.memory_stats()["Limit"] - start, memory.memory_stats()["Limit"])


@pytest.mark.parametrize("environment", [{"GAUDICC_EMULATOR_MEMORY": "10000"}])
def test_device_memory_ends(environment: dict[str, str]) -> None:
    x = torch.zeros(2000, device="hpu")
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(1000, device="hpu")
    del x
    torch.zeros(2000, device="hpu")


# rule 33
def test_autocast_lists() -> None:
    x = torch.ones(2, 2, device="hpu")
    assert torch.get_autocast_dtype("hpu") is torch.bfloat16
    with torch.autocast("hpu"):
        assert torch.log_softmax(x, -1).dtype is torch.bfloat16
        assert torch.mm(x, x).dtype is torch.bfloat16
        assert (x + x).dtype is torch.float32
        assert (x + x.to(torch.bfloat16)).dtype is torch.float32
        assert torch.exp(x.to(torch.bfloat16)).dtype is torch.float32
        four = x[None, None]
        assert torch.nn.functional.scaled_dot_product_attention(four, four, four).dtype is torch.bfloat16
        assert torch.nn.functional.layer_norm(x, (2,), x[0], x[0]).dtype is torch.bfloat16
    assert torch.mm(x, x).dtype is torch.float32
    with torch.autocast("hpu", dtype=torch.float16):
        assert torch.mm(x, x).dtype is torch.float16


def test_statistics_of_layer_norm_are_float32() -> None:
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    results = torch.native_layer_norm(x.to("hpu"), (8,), None, None, 1e-5)
    assert [result.dtype for result in results] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(results[1].cpu(), x.float().mean(-1, keepdim=True))
    assert torch.equal(results[0].cpu(), torch.nn.functional.layer_norm(x, (8,)))


# rule 13
def test_constants_are_marked_and_are_no_part_of_the_graph() -> None:
    from habana_frameworks.torch import core as htcore
    from habana_frameworks.torch.core.quantization import _check_params_as_const

    models = [torch.nn.Linear(2, 2).eval().to("hpu") for _ in range(2)]
    with pytest.raises(Exception, match="not marked as constant"):
        _check_params_as_const(models[0])
    x = torch.ones(1, 2, device="hpu")
    results = []
    for model in models:
        htcore.hpu_inference_initialize(htcore.hpu_set_inference_env(model))
        _check_params_as_const(model)
        results.append(model(x).tolist())
    assert results[0] != results[1]


# rule 14
def test_constants_are_written_one_file_each_when_a_graph_compiles(tmp_path: Path) -> None:
    from habana_frameworks.torch import core as htcore

    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "old").write_text("of another model")
    th.hpu.enable_const_section_serialization(str(tmp_path), True, True)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).eval().to("hpu")
    htcore.hpu_inference_initialize(model)
    files = tmp_path / "0"
    assert not list(files.iterdir()), "written when a graph compiles; what was there is cleared"
    x = torch.ones(1, 3).to("hpu")
    with torch.no_grad():
        for _ in range(2):
            model(x)
            htcore.mark_step()
            assert sorted(file.stat().st_size for file in files.iterdir()) == [8, 16, 32, 48]
        th.hpu.disable_const_section_serialization()
        htcore.hpu_inference_initialize(torch.nn.Linear(5, 5).eval().to("hpu"))
        (x + 1).cpu()
    assert len(list(files.iterdir())) == 4


# rules 21 and 30
def test_questions_do_not_open_the_device_and_pinned_memory_is_plain() -> None:
    torch.are_deterministic_algorithms_enabled()
    assert th.hpu.device_count() == 1
    assert th.hpu.is_available()
    assert not th.hpu.is_initialized()
    pinned = torch.ones(3).pin_memory()
    assert pinned.is_pinned()
    assert not torch.ones(3).is_pinned()
    assert pinned.to("hpu", non_blocking=True).tolist() == [1, 1, 1]
    assert th.hpu.is_initialized()
