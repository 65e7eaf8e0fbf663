import json
import operator

import torch
from torch import fx
from torch.export import Dim, export

from gaudicc.nodes import call_region
from gaudicc.targets import Mode, Target
from gaudicc.targets.findings import Finding, find


class Ported(torch.nn.Module):
    """A little of everything that a port trips over."""

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, ...]:
        steps = x[:, ::2]
        rows = torch.nonzero(keep)
        mask = torch.triu_indices(4, 4)
        wide = x.double() * 2
        normal = torch.nn.functional.layer_norm(x, [8])
        normal = torch.nn.functional.layer_norm(normal, [8])
        counts = torch.histc(x, 4)
        turned = torch.polar(x, x)
        return steps, rows, mask, wide, normal, counts, turned


def by_op(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.op: finding for finding in findings}


def ported(target: Target, mode: Mode = Mode.LAZY) -> list[Finding]:
    program = export(Ported(), (torch.randn(4, 8), torch.ones(6)))
    return find(program.graph_module, target, mode)


def test_findings_say_what_and_where(gaudi3: Target) -> None:
    found = by_op(ported(gaudi3))
    assert {op for op, finding in found.items() if not finding.legal} == {
        "aten::slice.Tensor",
        "aten::nonzero",
        "aten::triu_indices",
        "aten::histc",
        "aten::polar",
    }
    line = Ported.forward.__code__.co_firstlineno
    assert found["aten::slice.Tensor"].support == "reported_bad"
    assert found["aten::slice.Tensor"].sources == (f"targets/test_findings.py:{line + 1}",)
    assert found["aten::layer_norm"].count == 2
    assert found["aten::layer_norm"].sources == tuple(f"targets/test_findings.py:{line + n}" for n in (5, 6))
    assert found["aten::nonzero"].dynamic == ("output size or host read",)
    assert found["aten::polar"].hazards == ("c64",)
    assert "f64" in found["aten::mul.Tensor"].hazards
    assert found["aten::triu_indices"].hazards == ("i64",)


def test_findings_count_the_bytes_of_eager_fallback(gaudi3: Target) -> None:
    found = by_op(ported(gaudi3))
    assert found["aten::histc"].host_bytes == 4 * 8 * 4 + 4 * 4
    assert found["aten::layer_norm"].host_bytes == 0
    assert found["aten::nonzero"].host_bytes is None, "its output size is read from data"


def test_worst_comes_first_and_all_is_json(gaudi3: Target) -> None:
    findings = ported(gaudi3, Mode.COMPILE)
    order = ["no", "presumed", "reported_bad", "evidenced"]
    ranks = [order.index(finding.support) for finding in findings]
    assert ranks == sorted(ranks)
    loaded = json.loads(json.dumps([finding.as_json() for finding in findings]))
    assert [(each["op"], each["support"]) for each in loaded] == [(each.op, each.support) for each in findings]


def test_symbolic_sizes_count_with_their_example_and_add_no_guard(gaudi3: Target) -> None:
    class Histogram(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.histc(torch.stack([x, x]), 4)

    program = export(Histogram(), (torch.randn(5),), dynamic_shapes=({0: Dim("n", min=2, max=99)},))
    env = program.graph_module.graph.find_nodes(op="placeholder")[0].meta["val"].fake_mode.shape_env
    before = len(env.guards), dict(env.replacements)
    found = by_op(find(program.graph_module, gaudi3))
    assert found["aten::histc"].host_bytes == 2 * 5 * 4 + 4 * 4
    assert (len(env.guards), dict(env.replacements)) == before


def test_control_flow_and_its_branches_are_found(gaudi3: Target) -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.cond(x.sum() > 0, lambda t: torch.histc(t, 4), lambda t: t[:4].clone(), (x,))
            return result

    found = by_op(find(export(Branch(), (torch.randn(8),)).graph_module, gaudi3))
    assert found["cond"].dynamic == ("control flow",)
    assert found["aten::histc"].support == "no"


def test_a_region_counts_once_per_call_site(gaudi3: Target) -> None:
    fake = torch._subclasses.FakeTensorMode()
    value = fake.from_tensor(torch.randn(4))
    inner = fx.Graph()
    operand = inner.placeholder("x")
    operand.meta["val"] = value
    inner_op = inner.call_function(torch.ops.aten.histc.default, (operand, 4))
    inner_op.meta["val"] = value
    inner.output((inner_op,))
    outer = fx.Graph()
    carried = outer.placeholder("x")
    carried.meta["val"] = value
    for _ in range(3):
        body = outer.get_attr("layer")
        call = outer.call_function(call_region, (body, carried))
        carried = outer.call_function(operator.getitem, (call, 0))
    outer.output((carried,))
    graph = fx.GraphModule({"layer": fx.GraphModule({}, inner)}, outer)
    (finding,) = find(graph, gaudi3)
    assert (finding.op, finding.count, finding.host_bytes) == ("aten::histc", 3, 3 * (16 + 16))
