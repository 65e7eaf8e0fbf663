"""Runs in the common form: what is read off them, and traces read and written."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.errors import InputError
from gaudicc.profile import Activity, profile_of
from gaudicc.profile.activity import common, length, union
from gaudicc.profile.chrome import MODELLED, kind_of, write_chrome
from gaudicc.profile.files import read_trace
from gaudicc.profile.show import as_json, table
from gaudicc.profile.svg import write_svg

DATA = Path(__file__).parent / "data"
SPANS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=8
)


def instants(spans: list[tuple[float, float]]) -> set[int]:
    return {tick for start, end in spans for tick in range(int(start), int(end))}


@given(SPANS, SPANS)
def test_intervals_are_sets_of_instants(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> None:
    assert instants(union(one)) == instants(one)
    assert length(union(one)) == len(instants(one))
    assert instants(common(union(one), union(other))) == instants(one) & instants(other)


def test_a_node_on_several_engines_counts_once() -> None:
    run = [Activity("TPC", f"TPC {i}", "softmax", 0.0, 10.0 + i) for i in range(2)]
    profile = profile_of([*run, Activity("MME", "MME", "gemm", 5.0, 20.0, "mm", "compute")], "x", modelled=True)
    assert profile.busy == {"MME": 15.0, "TPC": 10.5}
    assert profile.active == {"MME": 15.0, "TPC": 11.0}
    assert (profile.window, profile.overlap, profile.idle) == (20.0, 6.0, 0.0)
    assert profile.overlap_efficiency == 6 / 11
    assert [(time.op, time.count, time.seconds) for time in profile.largest] == [("mm", 1, 15.0), ("softmax", 1, 10.5)]
    assert profile_of([], "nothing", modelled=True).window == 0.0


@pytest.mark.parametrize(
    ("name", "busy", "overlap", "largest"),
    [
        ("torch_profiler.json", {"MME": 40.0, "TPC": 50.0}, 10.0, "softmax_fwd_bf16"),
        ("hardware_events.csv", {"MME": 40.0, "TPC": 30.0}, 10.0, "gemm"),
        ("analyzed_nodes.csv", {"MME": 40.0, "TPC": 40.0, "DMA": 10.0}, 10.0, "gemm"),
    ],
)
def test_a_devices_trace_gives_the_same_table(name: str, busy: dict[str, float], overlap: float, largest: str) -> None:
    path = DATA / name
    profile = profile_of(read_trace(path), name, modelled=False)
    assert {kind: pytest.approx(seconds * 1e6) for kind, seconds in profile.busy.items()} == busy
    assert profile.overlap * 1e6 == pytest.approx(overlap)
    assert profile.largest[0].op == largest
    text = table([profile, profile])
    assert text.count("(from a trace)") == 4
    assert "MME and TPC at once" in text
    assert json.loads(json.dumps(as_json(profile)))["modelled"] is False


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    run = [
        Activity("MME", "[HD0] MME", "a & <b>", 0.0, 3e-6, "mm", "compute"),
        Activity("TPC", "[HD0] TPC", "c", 2e-6, 4e-6, "exp", "memory"),
    ]
    write_chrome(tmp_path / "t.json", [("one run", run)])
    back = read_trace(tmp_path / "t.json")
    assert [(e.kind, e.name, e.op, e.bound) for e in back] == [(e.kind, e.name, e.op, e.bound) for e in run]
    assert profile_of(back, "x", modelled=True).overlap == pytest.approx(1e-6)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} == {"one run", "[HD0] MME", "[HD0] TPC"}
    write_chrome(tmp_path / "m.json", [("one run" + MODELLED, run)])
    with pytest.raises(InputError, match="no device made it"):
        read_trace(tmp_path / "m.json")
    write_chrome(tmp_path / "m.json", [("one run" + MODELLED, run), ("one run", run)])
    assert read_trace(tmp_path / "m.json") == back
    write_svg(tmp_path / "t.svg", [("before", run), ("after", run)])
    drawn = ElementTree.parse(tmp_path / "t.svg").getroot()
    assert len(drawn.findall("{http://www.w3.org/2000/svg}rect")) == 4


@pytest.mark.parametrize(
    ("lane", "kind"),
    [("[HD1] MME 7", "MME"), ("[HD0] TPC 63", "TPC"), ("PDMA_up", "DMA"), ("KDMA", "DMA"), ("nic 3", "NETWORK"),
     ("python", None)],
)  # fmt: skip
def test_lanes_are_told_by_what_is_in_their_names(lane: str, kind: str | None) -> None:
    assert kind_of(lane) == kind


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.json", "nonsense", "as JSON"),
        ("a.json", '{"traceEvents": 3}', "no list of trace events"),
        ("a.json", "[]", "no lane"),
        ("a.json", '[{"ph":"M","name":"thread_name","pid":1,"tid":1,"args":{"name":"MME"}},{"ph":"E","pid":1,"tid":1,"ts":1}]',
         "never began"),
        ("a.csv", "x,y\n1,2\n", "has the columns"),
        ("a.csv", "Unit,Node Name,Op Type,Start,End\nMME,n,gemm,1,soon\n", "soon"),
        ("a.csv", "Unit,Node Name,Op Type,Start,End\nhost lane,n,gemm,1,2\n", None),
        ("a.csv", "Unit,Node Name,Op Type,Start,End\n", "no row"),
        ("a.csv", "Name,Engine,Event type,Timestamp[usec]\ng,MME,END,1\n", "never began"),
        ("a.csv", "Name,Engine,Event type,Timestamp[usec]\ng,MME,BEGIN,1\n", "never ends"),
        ("a.json", "[" * 100_000, "as JSON"),
    ],
)  # fmt: skip
def test_a_broken_trace_is_refused_with_a_reason(tmp_path: Path, name: str, text: str, what: str | None) -> None:
    (tmp_path / name).write_text(text)
    if what is None:
        assert [entry.kind for entry in read_trace(tmp_path / name)] == ["HOST"]
        return
    with pytest.raises(InputError, match=what):
        read_trace(tmp_path / name)


LANE = '{"ph":"M","name":"thread_name","pid":1,"tid":1,"args":{"name":"MME 0"}}'


@pytest.mark.parametrize(
    ("event", "what"),
    [
        ('{"ph":"X","name":"x","pid":1,"tid":1,"dur":5}', "x' has ts = None"),
        ('{"ph":"X","name":"x","pid":1,"tid":1,"ts":"soon","dur":5}', "has ts = 'soon'"),
        ('{"ph":"X","name":"x","pid":1,"tid":1,"ts":1,"dur":null}', "has dur = None"),
        ('{"ph":"X","name":"x","pid":1,"tid":1,"ts":5,"dur":-1}', "lasts from 5.0 to 4.0 us"),
        ('{"ph":"X","name":"x","pid":1,"tid":1,"ts":NaN,"dur":1}', "lasts from nan"),
        ('{"ph":"X","name":"x","pid":1,"tid":1,"ts":1%s}' % ("0" * 400), "which is no time"),
        ('{"ph":"B","name":"x","pid":1,"tid":1,"ts":1},{"ph":"X","name":"y","pid":1,"tid":1,"ts":5}', "x begins on MME 0 and"),
        ('{"ph":"X","name":"x","pid":1,"tid":1,"ts":1}', None),
        ('{"ph":"X","name":"x","pid":"1","tid":"1","ts":"1","dur":"2"}', None),
        ('{"ph":"X","name":"x","pid":1,"tid":1,"ts":1,"dur":2,"args":[1]}', None),
        ('{"ph":"M","name":"thread_name","pid":1,"tid":2,"args":null},{"ph":"X","name":"x","pid":1,"tid":1,"ts":1}', None),
        ('{"ph":"X","name":"cpu","pid":[9],"tid":9},{"ph":"X","name":"x","pid":1,"tid":1,"ts":1}', None),
    ],
)  # fmt: skip
def test_odd_events_are_read_or_named(tmp_path: Path, event: str, what: str | None) -> None:
    path = tmp_path / "t.json"
    path.write_text(f"[{LANE},\r\n{event}]", encoding="utf-8-sig")
    if what is None:
        assert [(entry.lane, entry.name) for entry in read_trace(path)] == [("MME 0", "x")]
        return
    with pytest.raises(InputError, match=re.escape(what)):
        read_trace(path)


@pytest.mark.parametrize("name", ["torch_profiler.json", "hardware_events.csv", "analyzed_nodes.csv"])
def test_packed_files_and_those_of_other_systems_are_read_alike(tmp_path: Path, name: str) -> None:
    data, whole = (DATA / name).read_bytes(), read_trace(DATA / name)
    forms = {
        f"{name}.gz": gzip.compress(data),
        "upper.CSV" if name.endswith("csv") else "UPPER.JSON": data,
        f"lines_{name}": data.replace(b"\n", b"\r\n"),
        f"mark_{name}": b"\xef\xbb\xbf" + data,
    }
    for file, form in forms.items():
        (tmp_path / file).write_bytes(form)
        assert read_trace(tmp_path / file) == whole
    for damaged in (b"", gzip.compress(data)[:-20], data.decode().encode("utf-16")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError, match=r"empty|cannot read"):
            read_trace(tmp_path / name)


def test_rows_of_a_csv_may_be_short_long_or_empty(tmp_path: Path) -> None:
    text, path = (DATA / "hardware_events.csv").read_text(), tmp_path / "t.csv"
    path.write_text(text + "\n\ncounter,HW,[D0] Cache\ngemm_9,HW,[HD0] MME 0,INSTANT,9" + ",x" * 20 + "\n")
    assert read_trace(path) == read_trace(DATA / "hardware_events.csv")
    path.write_text(text + "gemm_9,HW,[HD0] MME 0,BEGIN\n")
    with pytest.raises(InputError, match="the row of gemm_9 has Timestamp"):
        read_trace(path)
