"""Bundles that are damaged or made to do harm: a clear error each, never another exception and never a surprise."""

import copy
import io
import json
import random
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gaudicc.bundle import read_bundle
from gaudicc.errors import BundleError

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
Doctor = Callable[[Any], Path]


def nodes(content: Any, key: str = "captured", graph: int = -1) -> list[Any]:
    found: list[Any] = content["programs"][key]["graphs"][graph]["nodes"]
    return found


def call(content: Any, name: str, *args: Any) -> None:
    """Puts a call of another op in the place of the first call of the root."""
    node = next(node for node in nodes(content) if "call" in node and node["call"].startswith("aten"))
    node.update(call=name, args=list(args))
    node.pop("kwargs", None)


def first(content: Any, field: str) -> Any:
    return next(node for node in nodes(content) if field in node)


def region_call(content: Any) -> Any:
    return next(node for node in nodes(content) if node.get("call") == "call_region")


def top(content: Any, **fields: Any) -> None:
    content.update(fields)


def swap(content: Any, field: str, **values: Any) -> None:
    first(content, field).update(values)


def program(content: Any) -> Any:
    return content["programs"]["captured"]


CASES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "other format": (lambda c: top(c, format="zip of cats"), "no gaudicc bundle"),
    "other version": (lambda c: top(c, version=2), "version 2"),
    "no version": (lambda c: c.pop("version"), "version None"),
    "unknown op": (lambda c: call(c, "aten.no_such_op.default"), "not on the allow-list"),
    "unknown overload": (lambda c: call(c, "aten.add.no_such"), "has no op"),
    "from_file": (lambda c: call(c, "aten.from_file.default", "/etc/passwd", False, 10), "not on the allow-list"),
    "save": (lambda c: call(c, "aten.save.default", 1, "x"), "not on the allow-list"),
    "in-place op": (lambda c: call(c, "aten.relu_.default", {"node": "x"}), "not on the allow-list"),
    "out variant": (lambda c: call(c, "aten.relu.out", {"node": "x"}), "writes to its arguments"),
    "other namespace": (lambda c: call(c, "prims.add.default"), "not on the allow-list"),
    "dunder of the namespace": (lambda c: call(c, "aten.__init__.default"), "not on the allow-list"),
    "Python function": (lambda c: call(c, "os.system", "true"), "not on the allow-list"),
    "eval": (lambda c: call(c, "builtins.eval", "1"), "not on the allow-list"),
    "unknown semantic op": (lambda c: call(c, "gaudicc.no_such.default"), "has no op"),
    "library by name": (lambda c: call(c, "gaudicc.__class__.default"), "not on the allow-list"),
    "higher-order op": (lambda c: call(c, "higher_order.triton_kernel_wrapper_functional"), "not on the allow-list"),
    "too many arguments": (lambda c: call(c, "aten.relu.default", {"node": "x"}, 1), "do not fit"),
    "too few arguments": (lambda c: call(c, "aten.add.Tensor", {"node": "x"}), "do not fit"),
    "wrong arity": (lambda c: call(c, "getitem", {"node": "x"}), "takes 2 arguments"),
    "undefined node": (lambda c: call(c, "aten.relu.default", {"node": "nowhere"}), "no node 'nowhere' before"),
    "cycle": (lambda c: call(c, "aten.relu.default", {"node": nodes(c)[-1]["name"]}), "before this one"),
    "reads itself": (lambda c: first(c, "args").update(args=[{"node": first(c, "args")["name"]}]), "before this one"),
    "duplicate node": (lambda c: nodes(c).append(copy.deepcopy(nodes(c)[0])), "is taken"),
    "code in a name": (lambda c: swap(c, "call", name="x): import os\n#"), "no plain name"),
    "code in an input": (lambda c: swap(c, "input", input="x=__import__('os')"), "no plain name"),
    "code in a keyword": (lambda c: first(c, "call").update(kwargs={"a=1)+f(b": 1}), "no plain name"),
    "code in a body's name": (lambda c: swap(c, "body", body="forward()"), "no plain name"),
    "unknown argument type": (lambda c: call(c, "aten.relu.default", {"pickle": "gASVKA"}), "unknown type of arg"),
    "deep argument": (lambda c: call(c, "aten.relu.default", json.loads("[" * 50 + "]" * 50)), "nested more than"),
    "unknown dtype": (lambda c: call(c, "aten.relu.default", {"dtype": "Tensor"}), "unknown dtype"),
    "unknown device": (lambda c: call(c, "aten.relu.default", {"device": "cpu:-1"}), "unknown device"),
    "input after a call": (lambda c: nodes(c).append({"name": "late", "input": "late"}), "before all other nodes"),
    "body as a value": (lambda c: call(c, "aten.relu.default", {"node": first(c, "body")["name"]}), "before this one"),
    "call of no body": (lambda c: region_call(c)["args"].pop(0), "has a body and then operands"),
    "operand missing": (lambda c: region_call(c)["args"].pop(), "the call gives"),
    "body that does not exist": (lambda c: program(c)["graphs"][-1]["bodies"].update(block=7), "no body 7"),
    "body that calls itself": (lambda c: program(c)["graphs"][0]["bodies"].update(loop=0), "no body 0"),
    "body over a method": (lambda c: program(c)["graphs"][-1]["bodies"].update(forward=0), "cannot be named"),
    "engine": (lambda c: swap(c, "call", engine="GPU"), "unknown engine"),
    "source": (lambda c: swap(c, "source", source='x"\nimport os:1'), "no file:line"),
    "huge fake tensor": (lambda c: swap(c, "input", value=tensor([2**40] * 3, [1, 1, 1])), "no tensor|graph says"),
    "negative size": (lambda c: swap(c, "input", value=tensor([-1], [1])), "outside"),
    "size of no symbol": (lambda c: swap(c, "input", value=tensor(["s99"], [1])), "no size expression"),
    "code as a size": (lambda c: swap(c, "input", value=tensor(["__import__('os')"], [1])), "no size expression"),
    "huge power as a size": (lambda c: swap(c, "input", value=tensor(["pow(9, 99999999)"], [1])), "no size exp"),
    "division by zero": (lambda c: swap(c, "input", value=tensor(["floor_div(1, 0)"], [1])), "no size expression"),
    "hint that divides by zero": (lambda c: zero_division(c), "no size expression"),
    "no such symbol": (lambda c: program(c)["symbols"].update({"x.y": symbol()}), "is no symbol"),
    "empty range": (lambda c: program(c)["symbols"].update({"s99": symbol(low=5, high=4)}), "no size is in"),
    "hint outside": (lambda c: program(c)["symbols"].update({"s99": symbol(hint=99)}), "outside the range"),
    "a billion symbols": (lambda c: program(c)["symbols"].update({"u999999999": symbol(hint=None)}), "beyond u"),
    "code as a guard": (lambda c: program(c)["guards"][0].update(text="__import__('os').system('true')"), "no guard"),
    "attribute in a guard": (lambda c: program(c)["guards"][0].update(text="x.__class__ == 1"), "no guard"),
    "unknown target": (lambda c: program(c).update(target="../../etc"), "unknown target"),
    "input of another name": (lambda c: program(c)["inputs"][0].update(name="other"), "differ from those of the root"),
    "kind of input": (lambda c: program(c)["inputs"][0].update(kind="code"), "unknown kind of input"),
    "output missing": (lambda c: program(c)["outputs"].pop(), "differ in number"),
    "weight missing": (lambda c: program(c)["tensors"].popitem(), "no tensor for"),
    "weight of another shape": (lambda c: program(c)["tensors"].update(swapped(program(c))), "its graph says"),
    "tensor number": (lambda c: program(c)["tensors"].update(calls=10**6), "no tensor 1000000"),
    "negative number": (lambda c: program(c)["tensors"].update(calls=-1), "no tensor -1"),
    "paths": (lambda c: program(c)["calling"]["paths"].pop(), "paths for"),
    "static leaf": (lambda c: program(c)["calling"]["static"].append([99, 1]), "no leaf 99"),
    "output structure": (lambda c: program(c)["calling"].update(out_spec={"tuple": []}), "do not fill|no leaf"),
    "deep structure": (lambda c: program(c)["calling"].update(in_spec=deep(200)), "nested more than"),
    "tensors file elsewhere": (lambda c: c["tensors"].update(file="../../etc/passwd"), "no name of a tensors file"),
    "tensors file missing": (lambda c: c["tensors"].update(file=f"tensors-{'0' * 16}.safetensors"), "missing"),
    "storage missing": (lambda c: c["tensors"]["storages"].popitem(), "only one of"),
    "storage invented": (lambda c: c["tensors"]["storages"].update(x={"dtype": "F32", "shape": [1]}), "only one of"),
    "storage of another dtype": (lambda c: storage(c).update(dtype="I32"), "the JSON says"),
    "storage of terabytes": (lambda c: storage(c).update(shape=[2**42]), "the JSON says"),
    "view of terabytes": (lambda c: c["tensors"]["views"][0].update(shape=[2**42], stride=[1]), "its storage has"),
    "view beyond its storage": (lambda c: c["tensors"]["views"][0].update(offset=2**20), "its storage has"),
    "view between elements": (lambda c: c["tensors"]["views"][0].update(offset=1), "not aligned"),
    "view of many elements": (lambda c: c["tensors"]["views"][0].update(shape=[2**62] * 2, stride=[0, 0]), "no tensor"),
    "signature": (lambda c: program(c)["calling"]["parameters"][0].update(name="factor"), "no signature"),
    "kind of parameter": (lambda c: program(c)["calling"]["parameters"][0].update(kind="empty"), "unknown kind of par"),
    "code as a padded size": (lambda c: program(c).update(padded=padded("__import__('os')")), "is no size"),
    "padded size of a call": (lambda c: program(c).update(padded=padded("eval(1)")), "is no size"),
    "padded inputs of another": (lambda c: program(c).update(padded={**padded("2"), "inputs": []}), "1 entries"),
    "view of an unknown dtype": (lambda c: c["tensors"]["views"][0].update(dtype="qint8"), "unknown dtype"),
    "field that nobody knows": (lambda c: program(c).update(code="print()"), "unknown field 'code'"),
    "programs as a list": (lambda c: top(c, programs=[]), "an object is expected, found an array"),
}  # fmt: skip


def tensor(shape: list[Any], stride: list[Any]) -> Any:
    return {"dtype": "float32", "shape": shape, "stride": stride}


def symbol(**changes: Any) -> Any:
    return {"low": 0, "high": 8, "hint": 2, "positive": True, "size_like": False, **changes}


def zero_division(content: Any) -> None:
    name = next(iter(program(content)["symbols"]))
    swap(content, "input", value=tensor([f"floor_div({name}, floor_div(1, {name} + 1))"], [1]))


def swapped(program: Any) -> Any:
    weight = next(name for name in program["tensors"] if name.endswith("weight"))
    return {weight: program["tensors"]["calls"]}


def padded(size: str) -> Any:
    return {"outputs": [[]] * 6, "inputs": [[size, "4"]], "certificate": None}


def storage(content: Any) -> Any:
    return next(iter(content["tensors"]["storages"].values()))


def deep(levels: int) -> Any:
    return {"tuple": [deep(levels - 1)]} if levels else "leaf"


@pytest.mark.parametrize("case", CASES)
def test_doctored_json(case: str, content: Any, doctor: Doctor) -> None:
    change, message = CASES[case]
    doctored = copy.deepcopy(content)
    change(doctored)
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(doctor(doctored))
    assert str(caught.value).count("\n") == 2, "what, where, what to do"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"format": NaN}', "NaN is no JSON"),
        (b'{"format": 1, "format": 2}', "stands twice"),
        (b"7", "an object is expected, found a number"),
        (b"9" * 10_000, "cannot be read|found a number"),
    ],
)
def test_not_the_json_it_should_be(text: bytes, message: str, doctor: Doctor) -> None:
    with pytest.raises(BundleError, match=message):
        read_bundle(doctor(text))


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(-(2**70), 2**70), st.floats(allow_nan=False),
    st.text(max_size=4),
    st.sampled_from(["x", "self", "torch", "s0", "leaf", "float32", "aten.add.Tensor", "getitem", "call_region"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["node", "tuple", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        found += [(value, key), *places(item)]
    return found


def mutate(content: Any, choice: random.Random, value: Any) -> Any:
    """Deletes, replaces, repeats, moves or renames one thing anywhere."""
    doctored = copy.deepcopy(content)
    everywhere = places(doctored)
    container, key = choice.choice(everywhere)
    action = choice.choice(["delete", "replace", "repeat", "move", "rename"])
    if action == "delete":
        del container[key]
    elif action == "replace":
        container[key] = value
    elif action == "repeat" and isinstance(container, list):
        container.insert(choice.randrange(len(container) + 1), copy.deepcopy(container[key]))
    elif action == "rename" and isinstance(container, dict):
        container[str(value)] = container.pop(key)
    else:
        other, other_key = choice.choice(everywhere)
        container[key] = copy.deepcopy(other[other_key])
    return doctored


def load_or_refuse(path: Path) -> bool:
    try:
        read_bundle(path)
    except BundleError:
        return False
    return True


@FUZZ
@given(seed=st.integers(0, 2**32), value=VALUES)
def test_any_mutation_loads_or_is_refused(seed: int, value: Any, content: Any, doctor: Doctor) -> None:
    load_or_refuse(doctor(mutate(content, random.Random(seed), value)))


@pytest.mark.sweep
def test_many_mutations(content: Any, doctor: Doctor) -> None:
    choice = random.Random(1)
    words: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        2**65,
        0.5,
        "",
        "x",
        "self",
        "s0",
        [],
        {},
        [[]],
        {"node": "x"},
        {"tuple": []},
    ]
    loaded = sum(load_or_refuse(doctor(mutate(content, choice, choice.choice(words)))) for _ in range(5000))
    print(f"mutations: 5000, refused: {5000 - loaded}, loaded: {loaded}")
    assert 0 < loaded < 5000


@FUZZ
@given(data=st.data())
def test_truncated_anywhere(
    data: st.DataObject, saved_zip: bytes, saved_folder: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut")
    (path / "b.zip").write_bytes(saved_zip[: data.draw(st.integers(0, len(saved_zip) - 1))])
    (path / "b").mkdir()
    cut = data.draw(st.sampled_from(sorted(saved_folder)))
    for name, content in saved_folder.items():
        kept = content if name != cut else content[: data.draw(st.integers(0, len(content) - 1))]
        (path / "b" / name).write_bytes(kept)
    for bundle in (path / "b.zip", path / "b"):
        with pytest.raises(BundleError):
            read_bundle(bundle)


@FUZZ
@given(data=st.data())
def test_any_byte_of_the_zip_changed(
    data: st.DataObject, saved_zip: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flip") / "b.zip"
    changed = bytearray(saved_zip)
    for _ in range(data.draw(st.integers(1, 3))):
        from_end = data.draw(st.booleans())  # the zip's directory lies at the end: give it its share
        at = (
            len(changed) - 1 - data.draw(st.integers(0, 200))
            if from_end
            else data.draw(st.integers(0, len(changed) - 1))
        )
        changed[at] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    load_or_refuse(path)


def rebuilt(
    saved_zip: bytes, path: Path, change: Callable[[zipfile.ZipInfo, bytes], tuple[zipfile.ZipInfo, bytes]]
) -> Path:
    with zipfile.ZipFile(io.BytesIO(saved_zip)) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(*change(zipfile.ZipInfo(info.filename), old.read(info)))
    return path


@pytest.mark.parametrize(
    "name", ["../bundle.json", "/bundle.json", "a/../../x", "bundle.json/", "BUNDLE.JSON", "C:\\x"]
)
def test_path_traversal_in_the_zip(name: str, saved_zip: bytes, tmp_path: Path) -> None:
    def rename(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        return zipfile.ZipInfo(name) if info.filename == "bundle.json" else info, data

    with pytest.raises(BundleError, match=r"which no bundle does|no regular file"):
        read_bundle(rebuilt(saved_zip, tmp_path / "b.zip", rename))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.zip"]


def test_link_in_the_zip(saved_zip: bytes, tmp_path: Path) -> None:
    def link(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        if info.filename == "bundle.json":
            info.external_attr, data = (stat.S_IFLNK | 0o777) << 16, b"/etc/passwd"
        return info, data

    with pytest.raises(BundleError, match="no regular file"):
        read_bundle(rebuilt(saved_zip, tmp_path / "b.zip", link))


def test_zip_bomb(saved_zip: bytes, tmp_path: Path) -> None:
    def bomb(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        info.compress_type = zipfile.ZIP_DEFLATED
        return info, bytes(10**8) if info.filename == "bundle.json" else data

    path = rebuilt(saved_zip, tmp_path / "b.zip", bomb)
    assert path.stat().st_size < 10**6
    with pytest.raises(BundleError, match="compressed"):
        read_bundle(path)


def test_zip_that_claims_terabytes(saved_zip: bytes, tmp_path: Path) -> None:
    # The sizes of bundle.json in the central directory, the last entry there: bytes 20..28 after its signature.
    entry = saved_zip.rindex(b"PK\x01\x02")
    huge = (0xFFFFFFF0).to_bytes(4, "little") * 2
    (tmp_path / "b.zip").write_bytes(saved_zip[: entry + 20] + huge + saved_zip[entry + 28 :])
    with pytest.raises(BundleError, match="more than the whole file"):
        read_bundle(tmp_path / "b.zip")


@pytest.mark.parametrize("extra", ["bundle.json", "evil.py", "tensors-0000000000000000.safetensors"])
def test_more_members_than_a_bundle_has(extra: str, saved_zip: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(saved_zip)
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of the second bundle.json
        archive.writestr(extra, b"{}")
    with pytest.raises(BundleError, match=r"two members|which no bundle does"):
        read_bundle(tmp_path / "b.zip")


def test_links_and_odd_files_in_a_folder(saved_folder: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in saved_folder.items():
        (tmp_path / name).write_bytes(content)
    for name in saved_folder:
        kept = tmp_path / name
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BundleError, match="no regular file"):
            read_bundle(tmp_path)
        kept.unlink()
        with pytest.raises(BundleError, match="missing"):
            read_bundle(tmp_path)
        (tmp_path / "elsewhere").rename(kept)
    read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"), [("nothing", "there is no bundle"), ("empty.zip", "cannot be read"), ("folder", "missing")]
)
def test_no_bundle_there(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty.zip").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleError, match=message):
        read_bundle(tmp_path / path)


def test_header_of_safetensors(saved_folder: dict[str, bytes], tmp_path: Path) -> None:
    (name,) = saved_folder.keys() - {"bundle.json"}
    (tmp_path / "bundle.json").write_bytes(saved_folder["bundle.json"])
    data = saved_folder[name]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for change, message in (
        (lambda h: h["calls"].update(dtype="F99"), "unknown dtype"),
        (lambda h: h["calls"].update(shape=[2**50]), "disagree"),
        (lambda h: h["calls"].update(data_offsets=[0, 2**50]), "disagree"),
        (lambda h: h.pop("calls"), "disagree|header describes|only one of"),
        (lambda h: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [end(h), end(h)]}), "only one of"),
    ):
        doctored = copy.deepcopy(header)
        change(doctored)
        text = json.dumps(doctored).encode()
        (tmp_path / name).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        with pytest.raises(BundleError, match=message):
            read_bundle(tmp_path)
    (tmp_path / name).write_bytes((2**62).to_bytes(8, "little") + data[8:])
    with pytest.raises(BundleError, match="claims"):
        read_bundle(tmp_path)


def end(header: Any) -> int:
    ends: list[int] = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return max(ends)
