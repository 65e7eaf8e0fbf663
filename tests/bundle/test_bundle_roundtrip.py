"""The law of bundles: what is loaded prints, runs, ties and saves as what was saved."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from gaudicc.bundle import Record, read_bundle, write_bundle
from gaudicc.calling import Calling
from gaudicc.capture import capture
from gaudicc.errors import BundleError
from gaudicc.fake_values import fake_mode_of, trace
from gaudicc.invariants import TYPED, WELL_FORMED
from gaudicc.nodes import module_of, outputs_of, source_of, val
from gaudicc.printing import program_text
from gaudicc.program import InputKind, InputSpec, OutputKind, OutputSpec, Program

UNARY = [
    torch.relu,
    torch.neg,
    lambda x: x.sum(-1, keepdim=True),
    lambda x: x.transpose(0, -1),
    lambda x: x[..., ::2],
    lambda x: x.to(torch.float64),
    lambda x: torch.where(x > 0, x, float("inf")),
    lambda x: x.reshape(-1, 1).expand(-1, 2),
    lambda x: torch.split(x, 1, dim=0)[0],
    lambda x: torch.ops.gaudicc.rms_norm(x.float(), torch.ones_like(x[0, :]).float().reshape(-1), 1e-6, False),
]


@st.composite
def small_programs(draw: st.DrawFn) -> Program:
    """Graphs of a few ops over an input and weights that may share memory in every way."""
    import gaudicc.kernels  # noqa: F401

    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    memory = torch.arange(40, dtype=torch.float32).sin().to(dtype)
    weight = memory.as_strided((rows, columns), draw(st.sampled_from([(columns, 1), (1, rows), (0, 1)])), 3)
    other = draw(st.sampled_from([weight, weight.clone(), memory[2 : 2 + columns], memory.view(torch.uint8)[:columns]]))
    steps = draw(st.lists(st.sampled_from(UNARY), max_size=4))
    x = torch.randn(rows, columns)

    def compute(x: Tensor, weight: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        for step in steps:
            x = step(x)
        return x, weight * 2, other + 1

    mode = FakeTensorMode()
    root = trace(compute, [mode.from_tensor(value) for value in (x, weight, other)], mode)
    names = [node.name for node in root.graph.nodes if node.op == "placeholder"]
    return Program(
        root=root,
        inputs=tuple(
            InputSpec(name, kind, source)
            for name, kind, source in zip(
                names, (InputKind.USER, InputKind.WEIGHT, InputKind.STATE), ("x", "weight", "other"), strict=True
            )
        ),
        outputs=(OutputSpec(OutputKind.USER), OutputSpec(OutputKind.USER), OutputSpec(OutputKind.STATE, "other")),
        tensors={"weight": weight, "other": other},
        calling=Calling(pytree.tree_structure(((x,), {})), ("x",), {}, pytree.tree_structure((x, x))),
        example={names[0]: x},
    )


def assert_same(program: Program, loaded: Program) -> None:
    assert program_text(loaded) == program_text(program)
    assert program_text(loaded, numbered=False) == program_text(program, numbered=False)
    for one, two in zip(program.run(program.example), loaded.run(loaded.example), strict=True):
        assert one.dtype == two.dtype
        assert one.stride() == two.stride()
        assert bits(one) == bits(two)
    for (_, one), (_, two) in zip(program.graphs(), loaded.graphs(), strict=True):
        for a, b in zip(one.graph.nodes, two.graph.nodes, strict=True):
            assert (a.name, a.op, str(a.target), source_of(a), module_of(a)) == (
                b.name, b.op, str(b.target), source_of(b), module_of(b)
            )  # fmt: skip
            assert value_text(a) == value_text(b)


def bits(tensor: Tensor) -> list[int]:
    packed = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.flatten())
    return packed.view(torch.uint8).tolist() if tensor.numel() else []


def value_text(node: fx.Node) -> Any:
    return pytree.tree_map(
        lambda leaf: (
            (leaf.dtype, str(tuple(leaf.shape)), str(leaf.stride()), leaf.device)
            if isinstance(leaf, Tensor)
            else str(leaf)
        ),
        node.meta.get("val"),
    )


def sharing(tensors: list[Tensor]) -> list[list[int]]:
    """For every pair of tensors, the distance between their first elements where their storages are one."""
    return [
        [
            a.data_ptr() - b.data_ptr() if a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() else -1
            for b in tensors
        ]
        for a in tensors
    ]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=small_programs(), zipped=st.booleans())
def test_round_trip(program: Program, zipped: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("trip")
    first, second = (path / (name + ".zip" * zipped) for name in ("first", "second"))
    write_bundle(first, {"p": program}, {"n": [1, None]})
    loaded, manifest = read_bundle(first)
    assert manifest == {"n": [1, None]}
    assert_same(program, loaded["p"])
    assert sharing(list(loaded["p"].tensors.values())) == sharing(list(program.tensors.values()))
    write_bundle(second, loaded, manifest)
    files = [[one.read_bytes()] if zipped else sorted(f.read_bytes() for f in one.iterdir()) for one in (first, second)]
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def llama() -> dict[str, Program]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=32, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    inputs = {"input_ids": torch.randint(0, 32, (2, 6)), "use_cache": False}
    dims = {"input_ids": {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("sequence", min=1, max=32)}}
    return {"static": capture(model, inputs), "dynamic": capture(model, inputs, dynamic_shapes=dims)}


def test_llama_static_and_dynamic(llama: dict[str, Program], tmp_path: Path) -> None:
    write_bundle(tmp_path / "llama", llama, {})
    loaded, _ = read_bundle(tmp_path / "llama")
    for key, program in llama.items():
        assert_same(program, loaded[key])
        assert loaded[key].calling == program.calling
        assert loaded[key].dimensions == program.dimensions
        for name, module in loaded[key].graphs():
            for invariant in (WELL_FORMED, TYPED):
                assert not list(invariant.violations(loaded[key], module)), (key, name)
    ids = {"input_ids": torch.randint(0, 32, (3, 9))}
    assert torch.equal(loaded["dynamic"].run(ids)[0], llama["dynamic"].run(ids)[0])
    head = "lm_head.weight"
    assert loaded["static"].tensors[head] is loaded["dynamic"].tensors[head]
    write_bundle(tmp_path / "again", loaded, {})
    assert (tmp_path / "again/bundle.json").read_bytes() == (tmp_path / "llama/bundle.json").read_bytes()


def test_everything_at_once(programs: dict[str, Program], tmp_path: Path) -> None:
    write_bundle(tmp_path / "b.zip", programs, {"buckets": {"batch": [3]}})
    loaded, manifest = read_bundle(tmp_path / "b.zip")
    assert manifest == {"buckets": {"batch": [3]}}
    assert list(loaded) == list(programs)
    for key, program in programs.items():
        found = loaded[key]
        assert_same(program, found)
        for name in ("inputs", "outputs", "calling", "dimensions", "guards", "notes", "padded"):
            assert getattr(found, name) == getattr(program, name), name
        assert found.target is not None
        assert found.target.name == "gaudi3"
        assert sharing(list(found.tensors.values())) == sharing(list(program.tensors.values()))
    dynamic = loaded["captured"]
    x = torch.randn(7, 4)
    for one, two in zip(dynamic.run({"x": x}), programs["captured"].run({"x": x}), strict=True):
        assert torch.equal(one, two)
    assert len({id(fake_mode_of(module.graph)) for _, module in dynamic.graphs()}) == 1
    batch = next(val(node) for node in dynamic.root.graph.nodes if node.name == "x").shape[0]
    assert isinstance(batch, torch.SymInt)
    assert len(outputs_of(dynamic.root.graph)) == len(dynamic.outputs)


def test_loaded_program_can_be_rewritten(programs: dict[str, Program], tmp_path: Path) -> None:
    from gaudicc.rewriter import Rewriter

    write_bundle(tmp_path / "b", programs, {})
    program = read_bundle(tmp_path / "b")[0]["captured"]
    for _, module in program.graphs():
        rewriter = Rewriter(module)
        for node in [n for n in module.graph.nodes if n.target is torch.ops.aten.relu.default]:
            rewriter.replace(node, rewriter.inline(lambda x: torch.clamp(x, min=0), node.args[0], like=node))
        rewriter.finish()
    assert "aten.relu" not in program.count_ops()
    x = torch.randn(5, 4)
    for one, two in zip(program.run({"x": x}), programs["captured"].run({"x": x}), strict=True):
        assert torch.allclose(one, two)


def test_state_of_a_loaded_program_is_private(programs: dict[str, Program], tmp_path: Path) -> None:
    write_bundle(tmp_path / "b.zip", programs, {})
    first, second = (read_bundle(tmp_path / "b.zip")[0]["captured"] for _ in range(2))
    first.tensors["calls"].add_(7)
    assert second.tensors["calls"].tolist() == [0, 0]
    assert read_bundle(tmp_path / "b.zip")[0]["captured"].tensors["calls"].tolist() == [0, 0]


LOAD_ELSEWHERE = """
import sys, torch
from pathlib import Path
from torch.utils import _pytree as pytree
from gaudicc.bundle import Record, read_bundle
programs, _ = read_bundle(Path(sys.argv[1]))
program = programs["static"]
(logits,) = program.run(program.example)
output = pytree.tree_unflatten([logits], program.calling.out_spec)
assert type(output) is Record, type(output)
assert torch.equal(output.logits, torch.load(sys.argv[2])) and output["logits"] is logits
assert "transformers" not in sys.modules, "the loader imported transformers"
"""


def test_runs_where_the_model_code_is_never_imported(llama: dict[str, Program], tmp_path: Path) -> None:
    write_bundle(tmp_path / "llama.zip", llama, {})
    torch.save(llama["static"].run(llama["static"].example)[0], tmp_path / "expected.pt")
    arguments = [str(tmp_path / "llama.zip"), str(tmp_path / "expected.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", LOAD_ELSEWHERE, *arguments], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()


def test_what_no_bundle_holds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    program = capture(torch.nn.Linear(2, 2).eval(), (torch.randn(1, 2),))
    program.tensors["weight"] = torch.empty(2, 2, device="meta")
    with pytest.raises(BundleError, match=r"weight .*meta.* cannot be saved"):
        write_bundle(tmp_path / "b", {"p": program}, {})
    with pytest.raises(BundleError, match="not plain JSON"):
        write_bundle(tmp_path / "b", {}, {"path": Path("x")})
    assert not (tmp_path / "b").exists()


def test_ops_outside_the_list_are_refused_at_save(tmp_path: Path) -> None:
    program = capture(torch.nn.Linear(2, 2).eval(), (torch.randn(1, 2),))
    call = next(node for node in program.root.graph.nodes if node.op == "call_function")
    call.args = call.args[:1]
    for target, message in (
        (torch.ops.aten.relu_.default, "aten.relu_.default' is not on the allow-list"),
        (torch.ops.aten.relu.out, "writes to its arguments"),
        (torch.relu, "cannot be saved"),
    ):
        call.target = target
        with pytest.raises(BundleError, match=message) as caught:
            write_bundle(tmp_path / "b", {"p": program}, {})
        assert "before this step" in caught.value.todo


def test_record_is_a_dict_with_attributes() -> None:
    from gaudicc.bundle.trees import Origin

    record = Record(Origin("class", "a.B", [["x", "y"], ["z"]], 2), [1, 2])
    assert (record.x, record["y"], record.z) == (1, 2, None)
    leaves, spec = pytree.tree_flatten(record)
    assert leaves == [1, 2]
    assert pytree.tree_unflatten([3, 4], spec) == {"x": 3, "y": 4, "z": None}
    with pytest.raises(AttributeError, match="only"):
        record.other  # noqa: B018


def test_padded_programs_keep_their_proof(tmp_path: Path) -> None:
    from gaudicc.passes.pad import Pad

    model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Softmax(1))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.model(x), x.reshape(-1, 4).sum(0)

    dims = {"x": {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("sequence", min=1, max=8)}}
    program = Pad().run(capture(Model().eval(), (torch.randn(2, 3, 4),), dynamic_shapes=dims)).program
    assert program.padded is not None
    write_bundle(tmp_path / "b", {"p": program}, {})
    loaded = read_bundle(tmp_path / "b")[0]["p"]
    assert_same(program, loaded)
    assert loaded.padded == program.padded
    write_bundle(tmp_path / "again", {"p": loaded}, {})
    assert (tmp_path / "again/bundle.json").read_bytes() == (tmp_path / "b/bundle.json").read_bytes()
