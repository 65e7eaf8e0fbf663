"""What a language model leaves to its device: everything between two host reads; and what the device holds for it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

import gaudicc
from gaudicc.errors import InputError
from gaudicc.lm import CompiledLM
from gaudicc.lm.axes import exponential
from gaudicc.lm.state import Limits
from gaudicc.models.transformers_models import build


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 5, "top_p": 0.9, "seed": 3}])
def test_no_eager_op_runs_between_admission_and_sampling(
    lm: CompiledLM, prompts: list[list[int]], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever touches state, weights or logits outside of recordings is part of a host read, which comes after sampling."""
    lm.run([lm.submit(prompt, max_new_tokens=12, **options) for prompt in prompts])  # recording is no serving
    scheduler = lm._scheduler
    read, seen = scheduler._read, Counter[str]()

    def checked(requests: Any) -> None:
        assert counted.ops == seen
        read(requests)
        seen.update(counted.ops - seen)

    monkeypatch.setattr(scheduler, "_read", checked)
    steps = lm.stats.prefills + lm.stats.decode_steps
    with lm._graphs.device.eager_ops() as counted:  # type: ignore[attr-defined]  # the CPU device's own
        requests = [lm.submit(prompt, max_new_tokens=12, **options) for prompt in prompts]
        lm.run(requests)
    assert counted.replays == lm.stats.prefills + lm.stats.decode_steps - steps
    assert set(counted.ops) <= {"aten.view", "aten.slice.Tensor", "aten.select.int", "aten.copy_"}
    assert seen["aten.view"] > 0, "the host reads were seen"


def test_released_weights_are_held_once_and_the_model_goes_on_working() -> None:
    torch.manual_seed(0)
    model: Any = build("llama", task="causal")
    model.generation_config.eos_token_id = None
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=6, do_sample=False)
        logits = model(ids).logits
    lm: Any = gaudicc.compile_lm(model, max_batch=1, max_context=64, release=True, device="cpu")
    assert torch.equal(lm.generate(ids, max_new_tokens=6), expected)
    weights = sum(linear.weight.numel() * 4 for linear in model.modules() if isinstance(linear, torch.nn.Linear))
    assert lm._graphs.device.weights.bytes_held < weights / 4
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, logits, rtol=1e-5, atol=1e-5)
        state = {name: tensor * 0.5 for name, tensor in model.state_dict().items()}
        model.load_state_dict(state)
        assert torch.equal(lm.generate(ids, max_new_tokens=6), model.generate(ids, max_new_tokens=6, do_sample=False))


def test_release_is_refused_where_it_means_nothing(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        name = "other"

    monkeypatch.setattr("gaudicc.lm.compile.open_device", lambda device: (Other(), "other"))
    with pytest.raises(InputError, match="release"):
        gaudicc.compile_lm(llama, max_batch=1, max_context=64, release=True)


@pytest.mark.parametrize("context", [2, 16, 63, 64, 100, 128, 500, 512, 513, 4096])
def test_sizes_ascend_to_the_limit_and_pads_are_at_most_half_a_prompt_from_128_on(context: int) -> None:
    axes = exponential(Limits(3, context, 1))
    for sizes, limit in ((axes.batch, 3), (axes.queries, context), (axes.context, context)):
        assert list(sizes) == sorted(set(sizes))
        assert sizes[-1] == limit
    wide = [size for size in axes.queries if size >= 128]
    assert all(big <= 1.5 * small for small, big in pairwise(wide))


def test_two_slots_serve_a_model_that_tells_several_rows_from_one() -> None:
    """Its graphs for 2 rows hold for no other batch; with two slots, each batch is captured by itself."""
    model: Any = build("deepseek_v3", task="causal")
    model.generation_config.eos_token_id = None
    ids = torch.tensor([[5, 17, 9], [0, 8, 4]])
    mask = (ids > 0).long()
    lm = gaudicc.compile_lm(model, max_batch=2, max_context=16)
    for rows in (2, 1):
        given, marks = ids[:rows], mask[:rows]
        with torch.no_grad():
            wanted = model.generate(given, attention_mask=marks, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert torch.equal(torch.as_tensor(lm.generate(given, marks, max_new_tokens=3)), wanted)
    recorded = {name: len(buckets) for name, buckets in lm.buckets.items() if buckets}
    assert recorded == {"prefill of 2": 1, "decode of 2": 1, "prefill of 1": 1, "decode of 1": 1}
