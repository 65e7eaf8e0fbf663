"""Runs in the common form: what is read off them, and traces read and written."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.errors import InputError
from gaudicc.profile import Activity, profile_of
from gaudicc.profile.activity import common, length, union
from gaudicc.profile.chrome import kind_of, read_chrome, write_chrome
from gaudicc.profile.native import read_native
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
    activities = read_native(path) if path.suffix == ".csv" else read_chrome(path)
    profile = profile_of(activities, name, modelled=False)
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
    back = read_chrome(tmp_path / "t.json")
    assert [(e.kind, e.name, e.op, e.bound) for e in back] == [(e.kind, e.name, e.op, e.bound) for e in run]
    assert profile_of(back, "x", modelled=True).overlap == pytest.approx(1e-6)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} == {"one run", "[HD0] MME", "[HD0] TPC"}
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
    ],
)  # fmt: skip
def test_a_broken_trace_is_refused_with_a_reason(tmp_path: Path, name: str, text: str, what: str | None) -> None:
    (tmp_path / name).write_text(text)
    read = read_native if name.endswith("csv") else read_chrome
    if what is None:
        assert [entry.kind for entry in read(tmp_path / name)] == ["HOST"]
        return
    with pytest.raises(InputError, match=what):
        read(tmp_path / name)
