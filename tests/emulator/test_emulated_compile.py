"""Rules 49 to 55 and 59: `torch.compile(backend="hpu_backend")`."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ENVIRONMENT = {"PT_HPU_LAZY_MODE": "0"}

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""


def counts(kind: str) -> int:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    return gaudicc.emulator.account().count(Kind[kind])


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="hpu_backend", **options)


def ops_in_log() -> tuple[set[str], dict[str, str]]:
    """Ops named in the graphs, and the nodes' placement."""
    from habana_frameworks.torch.dynamo.compile_backend.passes import logger

    graphs = [text for text in logger.data if "####PyTorch-generated JIT IR" in text]
    ops = {name for text in graphs for name in re.findall(r"::(\w+)\(", text)}
    pattern = r"\[PT_COMPILE\] Node: (\w+) requires fallback: (\w+)"
    nodes = {match[1]: match[2] for text in logger.data if (match := re.match(pattern, text))}
    return ops, nodes


def store_log() -> None:
    from habana_frameworks.torch.dynamo.compile_backend.passes import logger

    logger.set_store_data(True)


def test_compiled_model_equals_eager_and_counts_one_recipe() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4)).to("hpu")
    x = torch.randn(2, 3).to("hpu")
    with torch.no_grad():
        expected = model(x)
        before = counts("COMPILE")
        run = compiled(model)
        for _ in range(3):
            torch.testing.assert_close(run(x).cpu(), expected.cpu())
        assert (counts("COMPILE") - before, counts("FALLBACK")) == (1, 0)
    run(x).sum().backward()
    compiled_grad = model[0].weight.grad.clone()
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(compiled_grad.cpu(), model[0].weight.grad.cpu())


def test_equal_layers_share_their_recipe() -> None:
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)).to("hpu")
    x, before = torch.ones(2, 4, device="hpu"), counts("COMPILE")
    with torch.no_grad():
        for layer in layers:
            x = compiled(layer)(x)
    assert counts("COMPILE") - before == 1


# rule 49
def test_log_names_ops_and_placement() -> None:
    store_log()
    compiled(lambda x: torch.histc(torch.relu(x) + 1, 4) * 2)(torch.ones(3, device="hpu"))
    ops, nodes = ops_in_log()
    assert ops == {"relu", "add", "mul"}
    assert nodes["histc"] == "True"
    assert nodes["relu"] == nodes["add"] == nodes["mul"] == "False"
    assert counts("FALLBACK") == 1


# rule 50
RANDOM = {
    "rand": (lambda x: torch.rand(3, device="hpu") + x, "habana_rand"),
    "rand_like": (torch.rand_like, "habana_rand"),
    "randn_like": (torch.randn_like, "habana_randn"),
    "randint": (lambda x: torch.randint(0, 9, (3,), device="hpu"), "habana_randint"),
    "bernoulli": (torch.bernoulli, "habana_bernoulli"),
    "poisson": (torch.poisson, "habana_poisson"),
    "multinomial": (lambda x: torch.multinomial(x, 2), "habana_multinomial"),
    "randperm": (lambda x: torch.randperm(5, device="hpu"), "habana_randperm"),
    "dropout": (lambda x: nn.functional.dropout(x, 0.5), "habana_native_dropout"),
}


def test_random_ops_have_names_of_their_own() -> None:
    for function, name in RANDOM.values():
        torch._dynamo.reset()
        store_log()
        compiled(function)(torch.full((3,), 0.5, device="hpu"))
        ops, nodes = ops_in_log()
        assert name in ops, (name, ops)
        assert set(nodes.values()) == {"False"}, name


# rule 51
def test_a_seed_gives_the_same_sequence_over_calls() -> None:
    draw = compiled(lambda x: torch.rand_like(x) + nn.functional.dropout(x, 0.5))
    x = torch.ones(16, device="hpu")

    def sequence() -> list[Tensor]:
        torch.manual_seed(4)
        return [draw(x).cpu() for _ in range(3)]

    first, again = sequence(), sequence()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_checkpoint_draws_the_same_numbers_again() -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.ones(32, device="hpu", requires_grad=True)
    out = checkpoint(lambda t: nn.functional.dropout(t, 0.5), x, use_reentrant=False)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.cpu(), out.detach().cpu())


# rule 52
def test_without_eager_fallback_a_node_that_needs_it_raises() -> None:
    from habana_frameworks.torch.dynamo.compile_backend import config
    from habana_frameworks.torch.dynamo.compile_backend.shared_layer import hpu_fallback_op_list

    x = torch.ones(3, device="hpu")
    with pytest.raises(Exception, match="eager fallback is off"):
        compiled(lambda t: torch.histc(t, 2), options={"use_eager_fallback": False})(x)
    compiled(lambda t: torch.histc(t, 2) + 1)(x)
    assert compiled(torch.addcmul, options={"use_eager_fallback": False})(x, x, x).tolist() == [2, 2, 2], "decomposed"
    config.use_eager_fallback = False
    assert not config.configuration_flags["use_eager_fallback"]
    compiled(lambda t: t * 3)(x)
    hpu_fallback_op_list.add("mul")
    with pytest.raises(Exception, match="eager fallback is off"):
        compiled(lambda t: t * 4)(x)
    with config.patch(use_eager_fallback=True):
        assert compiled(lambda t: t * 5)(x).tolist() == [5, 5, 5]
    with pytest.raises(AttributeError):
        config.patch(no_such_switch=1)


@pytest.mark.parametrize("environment", [{"PT_HPU_USE_EAGER_FALLBACK": "0"}])
def test_the_environment_forbids_eager_fallback_too(environment: dict[str, str]) -> None:
    with pytest.raises(Exception, match="eager fallback is off"):
        compiled(lambda t: torch.histc(t, 2))(torch.ones(3, device="hpu"))


# rule 53
def test_graph_analyzer_counts_ops_of_each_graph() -> None:
    from habana_frameworks.torch.utils.debug.dynamo_utils import FxGraphAnalyzer

    x = torch.ones(3, device="hpu")
    with FxGraphAnalyzer(reset_dynamo=True) as outer:
        compiled(lambda t: (t + 1) * (t + 2))(x)
        with FxGraphAnalyzer(capture_non_hpu_output=True) as inner:
            compiled(lambda t: torch.histc(t + 1, 2).cpu() + 1)(x)
    compiled(lambda t: t - 7)(x)
    first, second = outer.get_ops_summary()
    assert (first["torch.ops.aten.add.Tensor"].graph_count, first["torch.ops.aten.mul.Tensor"].graph_count) == (2, 1)
    assert second["torch.ops.aten.histc.default"].eager_count == 1
    assert second["torch.ops.aten.add.Tensor"].eager_count == 0
    (seen,) = inner.get_ops_summary()
    assert seen["torch.ops.aten.add.Tensor"].graph_count == 1
    assert seen["torch.ops.aten.add.Tensor"].eager_count == 1, "the sum on the host"
    assert (outer.get_partition_num(), inner.get_partition_num()) == (2, 1)


# rule 54
def test_a_constant_made_in_the_graph_is_fresh_at_each_call() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([1.0, 2.0], device="hpu"), x + 1

    run, x = compiled(function), torch.ones(2, device="hpu")
    first, second = run(x)[0], run(x)[0]
    assert first.data_ptr() != second.data_ptr()
    first.add_(5)
    assert run(x)[0].tolist() == second.tolist() == [1, 2]


# rule 55
def test_questions_about_the_mode_break_no_graph() -> None:
    from habana_frameworks.torch.utils.internal import is_lazy, lazy_only

    quiet = lazy_only(lambda: None)

    def function(x: Tensor) -> Tensor:
        quiet()
        return x + 1 if is_lazy() or th.hpu.device_count() > 8 else x * 3

    run = compiled(function, fullgraph=True)
    assert run(torch.ones(2, device="hpu")).tolist() == [3, 3]


def test_fused_kernels_break_no_graph() -> None:
    from habana_frameworks.torch.hpex.kernels import FusedSDPA

    store_log()
    x = torch.randn(1, 2, 4, 8).to("hpu")
    with torch.no_grad():
        run = compiled(lambda t: FusedSDPA.apply(t, t, t, None, 0.0, True, None, "fast", True) * 2, fullgraph=True)
        expected = nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True) * 2
        torch.testing.assert_close(run(x).cpu(), expected.cpu())
    assert "sdpa_recomp_fwd" in ops_in_log()[0]


# rule 59
def test_branches_of_cond_are_compiled() -> None:
    store_log()

    def function(x: Tensor) -> Tensor:
        result: Tensor = torch.cond(x.sum() > 0, lambda t: t.cos() + 1, lambda t: t.sin() - 1, (x,))
        return result

    run, x = compiled(function), torch.ones(3, device="hpu")
    with torch.no_grad():
        for sign in (1, -1):
            torch.testing.assert_close(run(x * sign).cpu(), function(x.cpu() * sign))
    assert {"cos", "sin", "add", "sub"} <= ops_in_log()[0]


def test_branches_need_no_eager_fallback() -> None:
    def function(x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda t: (t.cos(), t + 1), lambda t: (t.sin(), t - 1), (x,))

    run, x = compiled(function, options={"use_eager_fallback": False}), torch.ones(3, device="hpu")
    with torch.no_grad():
        assert run(x)[1].tolist() == [2, 2, 2]
        assert run(-x)[1].tolist() == [-2, -2, -2]


def test_flexible_attention_is_left_to_eager_mode() -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    weight = torch.randn(16, 16)
    mask: Any = create_block_mask(lambda b, h, i, j: i >= j, 1, 1, 128, 128, device="hpu")

    def attend(q: Tensor, weight: Tensor) -> Any:
        return flex_attention(q @ weight, q, q, block_mask=mask) + 1

    def expected(q: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q @ weight, q, q, is_causal=True) + 1

    q = torch.randn(1, 2, 128, 16)
    on_device = compiled(attend)
    with torch.no_grad():
        torch.testing.assert_close(on_device(q.to("hpu"), weight.to("hpu")).cpu(), expected(q, weight))
    gradients = []
    for function, place in ((on_device, "hpu"), (expected, "cpu")):
        leaf = weight.to(place).requires_grad_()
        function(q.to(place), leaf).square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.cpu())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_inputs_are_mutated_and_graph_breaks_survive() -> None:
    def function(cache: Tensor, x: Tensor) -> Tensor:
        cache.add_(x)
        torch._dynamo.graph_break()
        return cache * 2

    cache, run = torch.zeros(2, device="hpu"), compiled(function)
    for value in (1, 2):
        assert run(cache, torch.ones(2, device="hpu")).tolist() == [2 * value] * 2
    assert cache.tolist() == [2, 2]


def test_varying_sizes_compile_a_recipe_each() -> None:
    run = compiled(lambda x: x * 2 + 1, dynamic=True)
    given = [torch.ones(size, device="hpu") for size in (2, 3, 2)]
    before = counts("COMPILE")
    for x in given:
        assert run(x).tolist() == [3] * x.numel()
    assert counts("COMPILE") - before == 2, "recipes are static even where dynamo's graph is not"


def test_the_items_of_a_tuple_stay_in_the_cluster_of_the_op_that_made_it() -> None:
    run = compiled(lambda x: torch.topk(x, 2).values + 1, options={"use_eager_fallback": False})
    store_log()
    assert run(torch.tensor([1.0, 3.0, 2.0]).to("hpu")).tolist() == [4.0, 3.0]
    _, nodes = ops_in_log()
    assert {fallback for node, fallback in nodes.items() if node.startswith("getitem")} == {"False"}
    assert counts("COMPILE") == 1


def test_compile_only_mode_compiles_and_launches_nothing() -> None:
    from habana_frameworks.torch.internal import bridge_config

    def step(x: Tensor, at: Tensor) -> Tensor:
        x.add_(1)
        return x[:2] * x[at]

    run = compiled(lambda x, at: step(x, at).sum() + torch.arange(2, device="hpu")[-1])
    x, at = torch.ones(3).to("hpu"), torch.tensor([7, 9]).to("hpu")  # out of range: nothing looks at them
    with bridge_config.env_setting("PT_COMPILE_ONLY_MODE", True):
        assert run(x, at).shape == ()
    compiles = counts("COMPILE")
    assert compiles > 0
    assert x.tolist() == [1.0, 1.0, 1.0]
    assert run(x, torch.tensor([0, 1]).to("hpu")).item() == 9.0
    assert x.tolist() == [2.0, 2.0, 2.0]
    assert counts("COMPILE") == compiles


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 3, 1, 2)])
def test_clusters_view_results_as_fake_tensors_promise(order: tuple[int, ...]) -> None:
    def heads(x: Any) -> Any:
        return (x.view(2, 5, 3, 4).permute(order) * 2).view(2, -1)

    x = torch.randn(2, 5, 12)
    compiled: Any = torch.compile(heads, backend="hpu_backend")
    assert torch.equal(compiled(x.to("hpu")).cpu(), (x.view(2, 5, 3, 4).permute(order) * 2).reshape(2, -1))
