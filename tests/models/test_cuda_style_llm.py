"""The CUDA-style stack: correct in itself, and data dependent exactly where it says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from gaudicc.models import cuda_style_llm as stack

PROMPTS = st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=9), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def model() -> stack.Transformer:
    return stack.build("tiny")


@pytest.mark.parametrize("name", sorted(stack.CONFIGS))
def test_builds_and_runs_finite(name: str) -> None:
    model = stack.build(name)
    inputs = stack.example_inputs(model)
    with torch.inference_mode():
        logits, cache = model(**inputs)
    assert logits.shape == (2, 16, model.args.vocab_size)
    assert torch.isfinite(logits).all()
    assert len(cache) == model.args.n_layer
    assert {tuple(k.shape) for k, _ in cache} == {(2, 16, model.args.n_kv_head, model.args.head_dim)}


def test_build_is_seeded_and_leaves_the_global_generator() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, two, other = stack.build("tiny"), stack.build("tiny"), stack.build("tiny", seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_bfloat16_keeps_the_rotation_complex() -> None:
    model = stack.build("tiny", dtype=torch.bfloat16)
    reference = stack.build("tiny")
    inputs = stack.example_inputs(model)
    with torch.inference_mode():
        logits, _ = model(**inputs)
        expected, _ = reference(**inputs)
    assert logits.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(logits.float(), expected, dim=-1).min() > 0.99


def rotate(x_SKH: torch.Tensor) -> torch.Tensor:
    """Rotary embedding in real arithmetic, a position and a pair at a time."""
    out = torch.empty_like(x_SKH)
    for position in range(x_SKH.shape[0]):
        for pair in range(x_SKH.shape[2] // 2):
            angle = position / 10000.0 ** (2 * pair / x_SKH.shape[2])
            x, y = x_SKH[position, :, 2 * pair], x_SKH[position, :, 2 * pair + 1]
            out[position, :, 2 * pair] = x * math.cos(angle) - y * math.sin(angle)
            out[position, :, 2 * pair + 1] = x * math.sin(angle) + y * math.cos(angle)
    return out


def reference_forward(model: stack.Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """The same mathematics for one row, with the interleaved weights taken apart and one head at a time."""
    args = model.args
    x = model.embed.weight[tokens]
    for layer in (module for module in model.modules() if isinstance(module, stack.Block)):
        h = torch.nn.functional.rms_norm(x, (args.dim,), layer.attn_norm.weight, args.norm_eps)
        w_k, w_v = layer.attn.wkv.weight.reshape(args.n_kv_head, 2, args.head_dim, args.dim).unbind(1)
        q = rotate((h @ layer.attn.wq.weight.T).reshape(len(tokens), args.n_head, args.head_dim))
        k = rotate(torch.einsum("sd,khd->skh", h, w_k))
        v = torch.einsum("sd,khd->skh", h, w_v)
        heads = []
        for head in range(args.n_head):
            group = head * args.n_kv_head // args.n_head
            scores = q[:, head] @ k[:, group].T / math.sqrt(args.head_dim)
            hidden = torch.ones(len(tokens), len(tokens)).tril() == 0
            heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, group])
        x = x + torch.cat(heads, dim=-1) @ layer.attn.wo.weight.T
        h = torch.nn.functional.rms_norm(x, (args.dim,), layer.mlp_norm.weight, args.norm_eps)
        w_gate, w_up = layer.mlp.w_in.weight.reshape(args.ffn_dim, 2, args.dim).unbind(1)
        x = x + (torch.nn.functional.silu(h @ w_gate.T) * (h @ w_up.T)) @ layer.mlp.w_out.weight.T
    return torch.nn.functional.rms_norm(x, (args.dim,), model.norm.weight, args.norm_eps) @ model.head.weight.T


def test_forward_is_the_textbook_transformer(model: stack.Transformer) -> None:
    tokens = stack.example_inputs(model)["tokens"]
    with torch.inference_mode():
        expected = torch.stack([reference_forward(model, row) for row in tokens])
        torch.testing.assert_close(model(tokens)[0], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_cached_decode_equals_the_uncached_forward(model: stack.Transformer, chunk: int) -> None:
    tokens = stack.example_inputs(model)["tokens"]
    with torch.inference_mode():
        expected, _ = model(tokens)
        cache, steps = None, []
        for piece in tokens.split(chunk, dim=1):
            logits, cache = model(piece, cache)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-5, atol=1e-5)


def test_a_later_token_changes_no_earlier_logits(model: stack.Transformer) -> None:
    tokens = stack.example_inputs(model)["tokens"]
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % model.args.vocab_size
    with torch.inference_mode():
        before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(after[:, :-1], before[:, :-1], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, -1], before[:, -1])


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 8), st.data())
def test_mask_hides_the_future_and_the_padding(new: int, past: int, data: st.DataObject) -> None:
    total = new + past
    starts = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=3))
    bias = stack.causal_bias(new, total, torch.tensor(starts), torch.float32)
    for row, start in enumerate(starts):
        for query in range(new):
            for key in range(total):
                assert (bias[row, 0, query, key] == 0) == (start <= key <= past + query)


@settings(deadline=None)
@given(st.integers(0, 255), st.integers(0, 100))
def test_rotary_keeps_lengths_and_depends_on_distance_only(seed: int, shift: int) -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(seed)).unbind()
    table = stack.precompute_rotary(16, 256, 10000.0)

    def score(i: int, j: int) -> torch.Tensor:
        return (stack.apply_rotary(q, table[None, i : i + 1]) * stack.apply_rotary(k, table[None, j : j + 1])).sum()

    rotated = stack.apply_rotary(q, table[None, shift : shift + 1])
    torch.testing.assert_close(rotated.norm(), q.norm())
    torch.testing.assert_close(score(5 + shift, 2 + shift), score(5, 2), rtol=1e-3, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(PROMPTS, st.integers(1, 8), st.data())
def test_a_ragged_batch_equals_each_prompt_alone(
    model: stack.Transformer, prompts: list[list[int]], steps: int, data: st.DataObject
) -> None:
    free = [stack.generate(model, [prompt], steps)[0] for prompt in prompts]
    eos = data.draw(st.sampled_from([token for tokens in free for token in tokens]))  # so that some row does end
    alone = [tokens[: tokens.index(eos) + 1] if eos in tokens else tokens for tokens in free]
    assert stack.generate(model, prompts, steps, eos_id=eos) == alone


def test_the_padding_of_an_ended_row_leaves_with_it(model: stack.Transformer) -> None:
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 6, 7]]
    contexts: list[int] = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: contexts.append(output[1][0][0].shape[1]))
    free = stack.generate(model, prompts, 4)
    assert contexts == [9, 10, 11, 12]
    contexts.clear()
    eos = free[0][0]
    assert eos not in free[1]
    assert stack.generate(model, prompts, 4, eos_id=eos) == [[eos], free[1]]
    assert contexts == [9, 4, 5, 6]
    hook.remove()


def test_rows_end_at_eos_while_others_go_on(model: stack.Transformer) -> None:
    prompts = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    free = stack.generate(model, prompts, 12)
    eos = next(token for token in free[0] if token not in free[1])
    ended, running = stack.generate(model, prompts, 12, eos_id=eos)
    assert ended == free[0][: free[0].index(eos) + 1]
    assert running == free[1]


def test_greedy_generation_is_deterministic_and_sampling_is_seeded(model: stack.Transformer) -> None:
    prompts = [[1, 2, 3]]
    assert stack.generate(model, prompts, 8) == stack.generate(model, prompts, 8)
    torch.manual_seed(0)
    one = stack.generate(model, prompts, 8, temperature=1.0, top_k=5)
    torch.manual_seed(0)
    assert stack.generate(model, prompts, 8, temperature=1.0, top_k=5) == one
    assert stack.generate(model, prompts, 8, temperature=1.0, top_k=1) == stack.generate(model, prompts, 8)


def layers_run(
    model: stack.Transformer, tokens: torch.Tensor, cache: stack.Cache | None = None
) -> tuple[int, torch.Tensor, stack.Cache]:
    """How many layers ran their MLP for these tokens, with the step's results."""
    ran: list[int] = []
    hooks = [
        module.register_forward_hook(lambda *_: ran.append(1))
        for module in model.modules()
        if isinstance(module, stack.MLP)
    ]
    with torch.inference_mode():
        logits, grown = model(tokens, cache)
    for hook in hooks:
        hook.remove()
    return len(ran), logits, grown


def test_early_exit_depends_on_data() -> None:
    model = stack.build("tiny", early_exit=0.05)
    tokens = torch.arange(256)[:, None]
    counts = {layers_run(model, row[None])[0] for row in tokens[:40]}
    assert len(counts) > 1  # the same program, the same shape: another number of layers


def test_early_exit_bounds_and_its_cache() -> None:
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    never, always = stack.build("tiny", early_exit=1.1), stack.build("tiny", early_exit=0.0)
    ran, logits, _ = layers_run(never, tokens)
    assert ran == never.args.n_layer
    with torch.inference_mode():
        torch.testing.assert_close(logits, stack.build("tiny")(tokens)[0], rtol=0, atol=0)
    ran, _, cache = layers_run(always, tokens)
    assert ran == 1
    assert {k.shape[1] for k, _ in cache} == {5}  # skipped layers keep up, so that later tokens can run them
    ran, logits, cache = layers_run(never, tokens[:, :1], cache)
    assert (ran, cache[-1][0].shape[1]) == (never.args.n_layer, 6)
    assert torch.isfinite(logits).all()


def test_export_takes_prefill_and_decode_without_early_exit(model: stack.Transformer) -> None:
    tokens = stack.example_inputs(model)["tokens"]
    with torch.no_grad():
        logits, cache = model(tokens)
        prefill = torch.export.export(model, (tokens,), strict=False)
        torch.testing.assert_close(prefill.module()(tokens)[0], logits, rtol=0, atol=0)
        decode = torch.export.export(model, (tokens[:, :1], cache), strict=False)
        torch.testing.assert_close(
            decode.module()(tokens[:, :1], cache)[0], model(tokens[:, :1], cache)[0], rtol=0, atol=0
        )
    ops = {str(node.target) for node in prefill.graph.nodes if node.op == "call_function"}
    assert {"aten.triu_indices.default", "aten.view_as_complex.default", "aten.index_put_.default"} <= ops
    assert "aten.cat.default" in {str(node.target) for node in decode.graph.nodes}
    steps = {node.args[4] for node in prefill.graph.nodes if str(node.target) == "aten.slice.Tensor" and node.args[4:]}
    assert steps == {2}


def test_export_refuses_early_exit_and_names_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    model = stack.build("tiny", early_exit=0.05)
    with pytest.raises(GuardOnDataDependentSymNode, match="confident"):
        torch.export.export(model, tuple(stack.example_inputs(model).values()), strict=False)
    capsys.readouterr()  # torch prints the graph so far
