"""The pipeline: an order that cannot be right is refused before it runs, and whatever goes wrong later names its pass."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.passes.infra.pass_base import PassBase
from torch.fx.passes.infra.pass_base import PassResult as FxResult

import gaudicc
from gaudicc.capture import capture
from gaudicc.compiler import split_pipeline
from gaudicc.errors import NumericsError, PipelineError, PostconditionError, PreconditionError
from gaudicc.invariants import DECOMPOSED, FUNCTIONAL, LEGAL_OPS, STATIC, TYPED, Invariant
from gaudicc.nodes import is_op
from gaudicc.passes import DEFAULT_PIPELINE, AssignEngines, CleanUp, Decompose, LegalizeOps, Specialize
from gaudicc.pipeline import FxPass, GraphPass, Numerics, Pass, PassResult, Pipeline
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.targets import load_target
from gaudicc.trace import PassRecord
from gaudicc.verify import Level

aten = torch.ops.aten
Make = Callable[..., nn.Module]


@pytest.fixture
def program(make_stack: Make) -> Program:
    captured = capture(make_stack(3), (torch.randn(2, 8),))
    captured.target = load_target("gaudi3")
    return captured


@dataclass(frozen=True)
class Edit(GraphPass):
    """A pass of the test's: does `action` to every call of `op`."""

    action: Callable[[Rewriter, fx.Node], None]
    op: Any = aten.relu.default

    name: ClassVar[str] = "edit"

    def rewrite(self, rewriter: Rewriter, program: Program) -> list[str]:
        nodes = [node for node in rewriter.graph.nodes if node.target is self.op]
        for node in nodes:
            self.action(rewriter, node)
            rewriter.modified = True
        return [f"{len(nodes)} edited"] if nodes else []


def gelu_for_relu(rewriter: Rewriter, node: fx.Node) -> None:
    rewriter.replace(node, rewriter.emit(aten.gelu.default, node.args[0], like=node))


def same_again(rewriter: Rewriter, node: fx.Node) -> None:
    rewriter.replace(node, rewriter.emit(aten.clamp_min.default, node.args[0], 0, like=node))


def test_the_default_order_is_proved_and_any_other_start_is_refused() -> None:
    Pipeline(DEFAULT_PIPELINE)
    with pytest.raises(PipelineError, match="pass assign-engines requires legal-ops") as caught:
        Pipeline((AssignEngines(), *DEFAULT_PIPELINE))
    assert "put legalize-ops before it" in str(caught.value)


def idle(label: str, **contract: Invariant) -> Pass:
    """A pass that does nothing, with at most one invariant each in `requires`, `ensures` and `breaks`."""
    sets = {key: frozenset({contract[key]} if key in contract else ()) for key in ("requires", "ensures", "breaks")}
    kind = type("Idle", (GraphPass,), {"name": label, "rewrite": lambda self, rewriter, program: (), **sets})
    made: Pass = kind()
    return made


def test_a_pass_too_early_is_named_with_the_one_to_put_before_it() -> None:
    late, early = idle("late", ensures=STATIC), idle("early", requires=STATIC)
    assert STATIC in Pipeline((late, early)).ensured
    with pytest.raises(PipelineError, match="pass early requires static") as caught:
        Pipeline((early, late))
    assert "put late before it" in str(caught.value)
    assert caught.value.where.stage == "building the symbolic pipeline"


def test_a_pass_that_needs_what_nobody_ensures_is_named() -> None:
    with pytest.raises(PipelineError, match="pass early requires static") as caught:
        Pipeline((idle("other"), idle("early", requires=STATIC)))
    assert "no pass here ensures static" in str(caught.value)


def test_what_a_pass_breaks_does_not_hold_after_it() -> None:
    breaks, needs = idle("untype", breaks=TYPED), idle("needs", requires=TYPED)
    with pytest.raises(PipelineError, match="pass needs requires typed") as caught:
        Pipeline((breaks, needs))
    assert "untype breaks it" in str(caught.value)
    assert TYPED not in Pipeline((needs, breaks)).ensured


def test_split_needs_specialize_and_proves_the_second_half_from_the_first() -> None:
    with pytest.raises(PipelineError, match="lack specialize"):
        split_pipeline([step for step in DEFAULT_PIPELINE if not isinstance(step, Specialize)])
    with pytest.raises(PipelineError, match="pass specialize requires shapes-guarded") as caught:
        split_pipeline([step for step in DEFAULT_PIPELINE if step.name != "insert-bucket-guards"])
    assert "static pipeline" in str(caught.value.where)
    symbolic, static = split_pipeline(DEFAULT_PIPELINE, host=True)
    assert DECOMPOSED in symbolic.ensured <= static.initial
    assert static.passes[0].name == "specialize"
    assert [step.host for step in static.passes if isinstance(step, LegalizeOps)] == [True]


@pytest.mark.parametrize("step", DEFAULT_PIPELINE, ids=lambda step: step.name)
def test_passes_are_frozen_and_keep_the_protocol(step: Pass) -> None:
    assert isinstance(step, Pass)
    assert step.name == step.name.lower().replace("_", "-")
    assert isinstance(step.numerics, Numerics)
    with pytest.raises(AttributeError):
        step.anything = 1  # type: ignore[attr-defined]


def test_the_pass_that_breaks_an_invariant_is_named_and_not_the_next(program: Program) -> None:
    def mutate(rewriter: Rewriter, node: fx.Node) -> None:
        rewriter.emit(aten.relu_.default, node.args[0], like=node)

    with pytest.raises(PostconditionError, match=r"pass edit broke functional: aten\.relu_") as caught:
        Pipeline((Decompose(), Edit(mutate), CleanUp())).run(program)
    assert caught.value.where.op == "aten.relu_"
    assert caught.value.where.stage == "the checks after edit"
    assert "conftest.py" in str(caught.value.where.source)


def test_a_node_created_past_the_rewriter_is_a_broken_type(program: Program) -> None:
    def smuggle(rewriter: Rewriter, node: fx.Node) -> None:
        with rewriter.graph.inserting_before(node):
            new = rewriter.graph.call_function(aten.relu.default, node.args)
        node.replace_all_uses_with(new)

    with pytest.raises(PostconditionError, match=r"pass edit broke typed: .* through the rewriter only"):
        Pipeline((Edit(smuggle),)).run(program)


def test_a_pass_that_does_not_keep_its_promise_is_named(program: Program) -> None:
    @dataclass(frozen=True)
    class Promise(Edit):
        name: ClassVar[str] = "promise"
        ensures: ClassVar[frozenset[Invariant]] = frozenset({DECOMPOSED})

    with pytest.raises(PostconditionError, match=r"pass promise does not establish decomposed: aten\.layer_norm"):
        Pipeline((Promise(same_again),)).run(program)


def test_a_promise_is_checked_in_graphs_that_the_pass_did_not_touch(program: Program) -> None:
    with pytest.raises(PostconditionError, match="pass idle does not establish decomposed"):
        Pipeline((idle("idle", ensures=DECOMPOSED),)).run(program)


def test_a_program_that_lacks_what_it_is_said_to_have_is_refused(program: Program) -> None:
    node = next(node for node in program.bodies["block"].graph.nodes if is_op(node))
    del node.meta["val"]
    with pytest.raises(PreconditionError, match="typed does not hold"):
        Pipeline((CleanUp(),)).run(program)
    dynamic = capture(_Relu().eval(), (torch.randn(3),), dynamic_shapes={"x": {0: Dim("n", min=2, max=8)}})
    with pytest.raises(PreconditionError, match="static does not hold"):
        Pipeline((), initial=frozenset({STATIC})).run(dynamic)


class _Relu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def test_a_pass_that_changes_values_is_caught_with_the_first_node_and_both_values(program: Program) -> None:
    wrong = Pipeline((CleanUp(), Edit(gelu_for_relu), CleanUp()))
    wrong.run(program, level=Level.OPS)
    with pytest.raises(NumericsError, match="pass edit changed output 0") as caught:
        wrong.run(program, level=Level.NUMERICS)
    text = caught.value.what
    assert caught.value.where.stage == "edit"
    assert text.count(" became ") == 2, "the output's values and those of the first node to differ"
    # relu is now gelu, which has another name; the first node of the same name after it is the linear that reads it
    assert "the first node to differ is linear_1 in root/call_region (" in text
    assert "aten.linear, in layers.0.b" in text


def test_a_pass_that_rounds_must_say_so(program: Program) -> None:
    def reorder(rewriter: Rewriter, node: fx.Node) -> None:
        x, y = node.args
        rewriter.replace(node, rewriter.inline(lambda a, b: (a * 3 + b * 3) / 3, x, y, like=node))

    @dataclass(frozen=True)
    class Rounding(Edit):
        name: ClassVar[str] = "rounding"
        numerics: ClassVar[Numerics] = Numerics.ROUNDING

    Pipeline((Rounding(reorder, aten.add.Tensor),)).run(program, level=Level.NUMERICS)
    with pytest.raises(NumericsError, match="pass edit changed output 0"):
        Pipeline((Edit(reorder, aten.add.Tensor),)).run(program, level=Level.NUMERICS)


def test_strides_are_part_of_the_type(program: Program) -> None:
    def lie(rewriter: Rewriter, node: fx.Node) -> None:
        new = rewriter.emit(aten.clamp_min.default, node.args[0], 0, like=node)
        rewriter.replace(node, new)
        new.meta["val"] = new.meta["val"].t().contiguous().t()

    Pipeline((Edit(lie),)).run(program, level=Level.STRUCTURE)
    with pytest.raises(PostconditionError, match=r"a wrong type on clamp_min_default: f32\[2, 16\] strides \(1, 2\)"):
        Pipeline((Edit(lie),)).run(program, level=Level.SHAPES)


def test_a_dim_of_one_entry_has_no_stride() -> None:
    """What takes `x` may hand on another tensor of the same values, whose dim of one entry was made otherwise."""

    def body(x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(1).relu()

    def otherwise(rewriter: Rewriter, node: fx.Node) -> None:
        (source,) = node.all_input_nodes
        source.meta["val"] = source.meta["val"].as_strided((2, 1, 8), (8, 5, 1))

    program = capture(body, (torch.randn(2, 8),))
    Pipeline((Edit(otherwise),)).run(program, level=Level.SHAPES)


def test_a_copy_is_passed_on_only_if_it_was_left_alone(program: Program) -> None:
    """One copy serves passes that find nothing; what a pass changed without saying so does not reach the next."""

    @dataclass(frozen=True)
    class Sees:
        given: list[Program]
        spoils: bool = False
        name: ClassVar[str] = "sees"
        requires: ClassVar[frozenset[Invariant]] = frozenset()
        ensures: ClassVar[frozenset[Invariant]] = frozenset()
        breaks: ClassVar[frozenset[Invariant]] = frozenset()
        numerics: ClassVar[Numerics] = Numerics.BITWISE

        def run(self, program: Program) -> PassResult:
            self.given.append(program)
            program.tensors.clear()
            if self.spoils:
                program.root.graph.erase_node(program.root.graph.output_node())
            return PassResult(program, False)

    given: list[Program] = []
    after, _ = Pipeline((Sees(given), Sees(given, spoils=True), Sees(given))).run(program)
    first, second, third = (entry.root for entry in given)
    assert first is second
    assert third is not second
    assert after.root is program.root
    assert program.tensors
    assert third.graph.output_node().op == "output"


def test_graphs_that_a_pass_leaves_alone_are_shared(program: Program) -> None:
    def in_root(rewriter: Rewriter, node: fx.Node) -> None:
        if dict(rewriter.module.named_children()):
            rewriter.replace(node, rewriter.inline(torch.nn.functional.linear, *node.args, like=node))

    after, (record,) = Pipeline((Edit(in_root, aten.linear.default),)).run(program)
    assert record.modified
    assert after.bodies["block"] is program.bodies["block"]
    assert after.root is not program.root
    after, (record,) = Pipeline((Edit(same_again, aten.sin.default),)).run(program)
    assert not record.modified
    assert after.root is program.root


def test_each_pass_is_observed_as_it_ends(program: Program) -> None:
    seen: list[PassRecord] = []
    _, records = Pipeline((CleanUp(), Edit(same_again))).run(program, observers=(seen.append,))
    assert seen == records
    assert [record.name for record in seen] == ["clean-up", "edit"]
    assert seen[1].before is seen[0].after
    assert seen[1].ops() == {"aten.clamp_min": (0, 1), "aten.relu": (1, 0)}
    assert seen[1].notes == ("1 edited",)
    assert "typed" in seen[1].checks
    assert all(record.milliseconds > 0 for record in seen)


def test_the_program_given_is_left_as_it_is(program: Program) -> None:
    before = [[(n.name, n.target) for n in m.graph.nodes] for _, m in program.graphs()]
    Pipeline((Decompose(), CleanUp(), Edit(same_again))).run(program)
    assert [[(n.name, n.target) for n in m.graph.nodes] for _, m in program.graphs()] == before


class ReluIsClamp(PassBase):
    """An ordinary torch.fx pass that knows nothing of gaudicc."""

    def call(self, graph_module: fx.GraphModule) -> FxResult:
        modified = False
        for node in graph_module.graph.nodes:
            if node.target is aten.relu.default:
                node.target, node.args = aten.clamp_min.default, (node.args[0], 0)
                with graph_module.graph.inserting_after(node):
                    twin = graph_module.graph.call_function(aten.neg.default, (node,))
                with graph_module.graph.inserting_after(twin):
                    back = graph_module.graph.call_function(aten.neg.default, (twin,))
                node.replace_all_uses_with(back, delete_user_cb=lambda user, twin=twin: user is not twin)
                modified = True
        return FxResult(graph_module, modified)


def test_any_fx_pass_is_a_pass(program: Program) -> None:
    x = torch.randn(2, 8)
    after, (record,) = Pipeline((FxPass(ReluIsClamp(), "relu-is-clamp"),)).run(program, level=Level.SHAPES)
    assert record.name == "relu-is-clamp"
    assert record.ops() == {"aten.clamp_min": (0, 1), "aten.neg": (0, 2), "aten.relu": (1, 0)}
    assert all("val" in n.meta for n in after.bodies["block"].graph.nodes if n.op == "call_function")
    torch.testing.assert_close(after.run({"x": x}), program.run({"x": x}))


def test_an_fx_pass_takes_its_place_in_a_compile(make_stack: Make) -> None:
    model, x = make_stack(3), torch.randn(2, 8)
    passes = (DEFAULT_PIPELINE[0], FxPass(ReluIsClamp(), "relu-is-clamp"), *DEFAULT_PIPELINE[1:])
    compiled = gaudicc.compile(model, (x,), passes=passes, verify="numerics")
    assert compiled.trace["relu-is-clamp"].modified
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


def test_an_fx_pass_that_breaks_something_is_named_by_its_label(program: Program) -> None:
    class Methods(PassBase):
        def call(self, graph_module: fx.GraphModule) -> FxResult:
            for node in graph_module.graph.nodes:
                if node.target is aten.relu.default:
                    node.op, node.target = "call_method", "relu"
            return FxResult(graph_module, True)

    with pytest.raises(PostconditionError, match="pass methods broke well-formed: call_method"):
        Pipeline((FxPass(Methods(), "methods"),)).run(program)


def test_a_pass_may_return_a_program_of_its_own(program: Program) -> None:
    @dataclass(frozen=True)
    class Note:
        name: ClassVar[str] = "note"
        requires: ClassVar[frozenset[Invariant]] = frozenset({FUNCTIONAL})
        ensures: ClassVar[frozenset[Invariant]] = frozenset()
        breaks: ClassVar[frozenset[Invariant]] = frozenset()
        numerics: ClassVar[Numerics] = Numerics.BITWISE

        def run(self, program: Program) -> PassResult:
            return PassResult(replace(program, notes=("noted",)), True)

    after, _ = Pipeline((Note(),)).run(program)
    assert after.notes == ("noted",)
    assert program.notes == ()
    assert LEGAL_OPS not in Pipeline((Note(),)).ensured
    assert operator.is_(after.root, program.root)
