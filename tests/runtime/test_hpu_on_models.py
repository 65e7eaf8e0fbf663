"""Eight families, the CUDA-style stack and generation run in both modes as on the CPU: no fallback, nothing new once warm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

FAMILIES = ("llama", "mistral", "qwen3", "gemma3_text", "gpt2", "bert", "t5", "mixtral")
# Relative to the largest magnitude, as in tests/test_families.py.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
BROKEN = ("FALLBACK", "HOST_READ", "MIXED", "SPLIT", "HAZARD", "OVERFLOW")
NEW = ("COMPILE", "CAPTURE")


def counts() -> dict[str, int]:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    account = gaudicc.emulator.account()
    found = {kind.name: account.count(kind) for kind in Kind}
    account.clear()
    return found


def saved(folder: Path, model: Any, calls: list[dict[str, torch.Tensor]]) -> Path:
    """A bundle of a model, some calls, and what the CPU device makes of them."""
    import gaudicc

    compiled = gaudicc.compile(model, calls[0])
    compiled.save(folder / "bundle")
    results = [dict(out) if isinstance(out := compiled(**call), dict) else {"out": out} for call in calls]
    torch.save(
        (calls, [{k: v for k, v in r.items() if isinstance(v, torch.Tensor)} for r in results]), folder / "calls.pt"
    )
    return folder


CASES = [
    *((name, torch.float32) for name in FAMILIES),
    *(pytest.param((name, torch.bfloat16), marks=pytest.mark.sweep) for name in FAMILIES),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{str(case[1]).removeprefix('torch.')}")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = pytest.importorskip("gaudicc.models.transformers_models", reason="needs gaudicc[models]")
    name, dtype = request.param
    model = models.build(name, dtype=dtype)
    inputs = models.example_inputs(model)
    other = inputs | {key: inputs[key].flip(0) for key in ("input_ids", "attention_mask")}
    return saved(tmp_path_factory.mktemp(name), model, [inputs, other, inputs])


def run_saved(folder: Path, mode: str, tolerance: dict[torch.dtype, float] = TOLERANCE) -> None:
    import gaudicc

    calls, expected = torch.load(folder / "calls.pt")
    compiled = gaudicc.load(folder / "bundle", device="hpu")
    assert ("lazy mode" if mode == "lazy" else "compile mode") in compiled.notes[0]
    compiled.warm_up()
    warm = counts()
    assert not any(warm[kind] for kind in BROKEN), warm
    assert warm["COMPILE"] > 0
    assert warm["CAPTURE"] == (mode == "lazy")
    for call, wanted in zip(calls, expected, strict=True):
        out = compiled(**call)
        found = out if isinstance(out, dict) else {"out": out}
        for name, value in wanted.items():
            assert found[name].device.type == "cpu"
            assert found[name].dtype is value.dtype
            bound = tolerance[value.dtype] * max(1.0, float(value.abs().max()))
            torch.testing.assert_close(found[name], value, rtol=0, atol=bound)
    after = counts()
    assert not any(after[kind] for kind in (*BROKEN, *NEW)), after
    assert after["REPLAY"] == (len(calls) if mode == "lazy" else 0)
    assert compiled.stats.records == 1
    assert compiled.stats.bytes_held > 0


def test_a_family_equals_the_cpu(family: Path, mode: str) -> None:
    run_saved(family, mode)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gaudicc.models import cuda_style_llm

    model = cuda_style_llm.build("tiny")
    inputs: Any = cuda_style_llm.example_inputs(model)
    return saved(tmp_path_factory.mktemp("stack"), model, [inputs, inputs])


def test_the_cuda_style_stack_equals_the_cpu(stack: Path, mode: str) -> None:
    run_saved(stack, mode)


def test_generation_equals_the_stacks_own(mode: str) -> None:
    import gaudicc
    from gaudicc.models import cuda_style_llm

    model = cuda_style_llm.build("tiny", n_layer=2)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 90, (length,), generator=generator).tolist() for length in (5, 11)]
    wanted = cuda_style_llm.generate(model, prompts, max_new_tokens=9)
    lm = gaudicc.compile_lm(model, max_batch=2, max_context=32, device="hpu", chunk=4)
    requests = [lm.submit(prompt, max_new_tokens=9) for prompt in prompts]
    lm.run()
    assert [request.tokens for request in requests] == wanted
    warm = counts()
    assert not any(warm[kind] for kind in BROKEN), warm
    stream: Any = lm.stream(prompts[0], max_new_tokens=9)
    assert [next(stream), next(stream)] == requests[0].tokens[:2]
    stream.close()  # cancelled: the host writes `live`, which the device holds
    requests = [lm.submit(prompt, max_new_tokens=9) for prompt in prompts]
    reads, records = lm.stats.host_reads, lm.stats.records
    counts()
    lm.run()
    assert [request.tokens for request in requests] == wanted
    after = counts()
    assert not any(after[kind] for kind in (*BROKEN, *NEW)), after
    assert after["TO_HOST"] == 3 * (lm.stats.host_reads - reads), "between two chunks nothing comes to the host"
    assert lm.stats.records == records


@pytest.mark.sweep
@pytest.mark.parametrize("family_name", ["llama", "gpt2"])
def test_generation_of_transformers_equals_the_cpu(family_name: str, mode: str) -> None:
    import gaudicc
    from gaudicc.models.transformers_models import build

    model: Any = build(family_name, task="causal")
    model.generation_config.eos_token_id = None
    ids = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(1))
    drawn: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "top_k": 20}
    on_cpu, on_hpu = (gaudicc.compile_lm(model, max_batch=2, max_context=40, device=name) for name in ("cpu", "hpu"))
    plain: dict[str, Any] = {}
    for how in (plain, drawn):
        wanted = on_cpu.generate(ids, max_new_tokens=20, **how)
        for _ in range(2):
            counts()
            assert torch.equal(torch.as_tensor(on_hpu.generate(ids, max_new_tokens=20, **how)), torch.as_tensor(wanted))
        after = counts()
        assert not any(after[kind] for kind in (*BROKEN, *NEW)), after
