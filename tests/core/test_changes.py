"""What counts as a change: every difference that a reader or a check could see, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from gaudicc.capture import capture
from gaudicc.changes import alike, changed_nodes
from gaudicc.graph_module import LazyGraphModule, copy_graph
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.targets.model import Engine

aten = torch.ops.aten
Make = Callable[..., nn.Module]


@pytest.fixture
def body(make_stack: Make) -> fx.GraphModule:
    program: Program = capture(make_stack(3), (torch.randn(2, 8),))
    return program.bodies["block"]


def relu_of(module: fx.GraphModule) -> fx.Node:
    found: fx.Node = next(node for node in module.graph.nodes if node.target is aten.relu.default)
    return found


def test_a_copy_is_alike_and_nothing_in_it_changed(body: fx.GraphModule) -> None:
    copy = copy_graph(body)
    assert alike(body, copy)
    assert list(changed_nodes(body, copy)) == []
    assert list(changed_nodes(None, copy)) == list(copy.graph.nodes)


def _target(node: fx.Node) -> None:
    node.target = aten.neg.default


def _literal(node: fx.Node) -> None:
    after = next(iter(node.users))
    after.args = (*after.args[:1], *after.args[1:], 1.0)


def _value(node: fx.Node) -> None:
    node.meta["val"] = node.meta["val"].t().contiguous().t().double()


def _wiring(node: fx.Node) -> None:
    node.args = (node.args[0].args[0],)  # type: ignore[union-attr]


def _engine(node: fx.Node) -> None:
    node.meta["engine"] = Engine.TPC


@pytest.mark.parametrize("edit", [_target, _literal, _value, _wiring, _engine])
def test_any_edit_is_seen(body: fx.GraphModule, edit: Callable[[fx.Node], None]) -> None:
    copy = copy_graph(body)
    edit(relu_of(copy))
    assert not alike(body, copy)


@pytest.mark.parametrize("edit", [_target, _value, _wiring])
def test_who_reads_what_changed_has_changed(body: fx.GraphModule, edit: Callable[[fx.Node], None]) -> None:
    copy = copy_graph(body)
    node = relu_of(copy)
    edit(node)
    assert set(changed_nodes(body, copy)) == {node, *node.users}


def test_numbers_of_another_type_are_another_call(body: fx.GraphModule) -> None:
    one, other = copy_graph(body), copy_graph(body)
    for module, number in ((one, 1), (other, True)):
        relu_of(module).args = (relu_of(module).args[0], number)
    assert not alike(one, other)


def test_new_and_removed_nodes_are_changes(body: fx.GraphModule) -> None:
    copy = copy_graph(body)
    rewriter = Rewriter(copy)
    node = relu_of(copy)
    rewriter.replace(node, rewriter.emit(aten.clamp_min.default, node.args[0], 0, like=node))
    assert not alike(body, copy)
    assert {changed.name for changed in changed_nodes(body, copy)} >= {"clamp_min_default"}


def test_code_is_written_when_it_is_asked_for_and_kept_up_to_date(body: fx.GraphModule) -> None:
    copy = copy_graph(body)
    assert isinstance(copy, LazyGraphModule)
    operands = [torch.randn(node.meta["val"].shape) for node in body.graph.find_nodes(op="placeholder")]
    assert not hasattr(copy, "_code")
    torch.testing.assert_close(copy(*operands), body(*operands))
    relu_of(copy).target = aten.neg.default
    copy.recompile()
    assert "neg" in copy.code
    assert "neg" in str(copy)
    assert not torch.equal(copy(*operands)[0], body(*operands)[0])


def test_copies_share_values_but_no_nodes_and_bodies_once(make_stack: Make) -> None:
    root = capture(make_stack(3), (torch.randn(2, 8),)).root
    copy = copy_graph(root)
    assert len({id(child) for _, child in copy.named_children()}) == len(dict(root.named_children()))
    for old, new in zip(root.graph.nodes, copy.graph.nodes, strict=True):
        assert old is not new
        assert old.name == new.name
        assert old.meta.get("val") is new.meta.get("val")
    old_meta = next(iter(root.graph.nodes)).meta
    next(iter(copy.graph.nodes)).meta["new"] = 1
    assert "new" not in old_meta
