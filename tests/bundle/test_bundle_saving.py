"""A save that fails or is killed leaves the bundle that was there before; a save that succeeds leaves no litter."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gaudicc.bundle import files, read_bundle, write_bundle
from gaudicc.capture import capture
from gaudicc.errors import BundleError
from gaudicc.program import Program

# Saves a program whose weight is `value` over what is at the path, and dies in the middle: killed when `os.fsync` or
# `Path.replace` is called for the n-th time, or because no file may grow beyond n bytes, as on a full disk.
SAVE_AND_DIE = """
import os, resource, signal, sys
from pathlib import Path
import torch
from gaudicc.bundle import write_bundle
from gaudicc.capture import capture
how, n, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
class Model(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x)
model = Model(64, 64).eval()
torch.nn.init.constant_(model.weight, 2.0)
program = capture(model, (torch.zeros(1, 64),))
if how == "full disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
else:
    owner, name = {"fsync": (os, "fsync"), "replace": (Path, "replace")}[how]
    original, calls = getattr(owner, name), []
    def deadly(*args):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    setattr(owner, name, deadly)
write_bundle(path, {"p": program}, {"value": 2})
"""


class Model(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def make(value: float) -> Program:
    model = Model(64, 64).eval()
    torch.nn.init.constant_(model.weight, value)
    return capture(model, (torch.zeros(1, 64),))


def saved_value(path: Path) -> float:
    programs, manifest = read_bundle(path)
    value = programs["p"].tensors["weight"].unique()
    assert value.tolist() == [manifest["value"]], "JSON and tensors of two saves were mixed"
    return float(value)


@pytest.mark.parametrize("name", ["b.zip", "b"])
@pytest.mark.parametrize(("how", "n"), [("fsync", 1), ("replace", 1), ("replace", 2), ("full disk", 9000)])
def test_interrupted_save_leaves_the_old_bundle(how: str, n: int, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_bundle(path, {"p": make(1.0)}, {"value": 1})
    command = [sys.executable, "-c", SAVE_AND_DIE, how, str(n), str(path)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    completed = name == "b.zip" and (how, n) == ("replace", 2)  # a zip is renamed once
    if completed:
        assert done.returncode == 0, done.stderr.decode()
    elif how == "full disk":
        assert b"BundleError: the bundle cannot be written" in done.stderr
        assert not list(tmp_path.rglob("*.tmp"))
    else:
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert saved_value(path) == (2.0 if completed else 1.0)
    write_bundle(path, {"p": make(3.0)}, {"value": 3})
    assert saved_value(path) == 3.0


def test_a_loaded_bundle_survives_being_saved_over(tmp_path: Path) -> None:
    for path in (tmp_path / "b.zip", tmp_path / "b"):
        write_bundle(path, {"p": make(1.0)}, {"value": 1})
        loaded, _ = read_bundle(path)
        write_bundle(path, {"p": make(2.0)}, {"value": 2})
        assert loaded["p"].tensors["weight"].unique().tolist() == [1.0]
        write_bundle(path, loaded, {"value": 1})
        assert saved_value(path) == 1.0


def test_a_folder_keeps_one_tensors_file_and_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for value in (1.0, 2.0, 2.0):
        write_bundle(tmp_path, {"p": make(value)}, {"value": value})
    names = sorted(file.name for file in tmp_path.iterdir())
    assert len(names) == 3
    assert names[:2] == ["bundle.json", "notes.txt"]


def test_a_failed_first_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    program = make(1.0)
    monkeypatch.setattr(os, "fsync", full)
    for name in ("b.zip", "b"):
        with pytest.raises(BundleError, match="No space left"):
            write_bundle(tmp_path / name, {"p": program}, {})
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_a_bundle(tmp_path: Path) -> None:
    program = make(1.0)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.zip").mkdir()
    for path in (tmp_path / "file", tmp_path / "folder.zip", tmp_path / "file" / "b.zip"):
        with pytest.raises(BundleError, match="cannot be written"):
            write_bundle(path, {"p": program}, {})
    assert (tmp_path / "file").read_text() == "x"


# Saves and loads one path many times, each save with another value.
SAVE_AND_LOAD = """
import sys
from pathlib import Path
import torch
from gaudicc.bundle import read_bundle, write_bundle
from gaudicc.capture import capture
path, first, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
class Model(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x)
programs = []
for value in range(first, first + 3):
    model = Model(64, 64).eval()
    torch.nn.init.constant_(model.weight, value)
    programs.append(capture(model, (torch.zeros(1, 64),)))
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    write_bundle(path, {"p": programs[number % 3]}, {"value": first + number % 3})
    loaded, manifest = read_bundle(path)
    assert loaded["p"].tensors["weight"].unique().tolist() == [manifest["value"]]
"""


@pytest.mark.parametrize("name", ["b.zip", "b"])
def test_processes_may_share_a_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    command = [sys.executable, "-c", SAVE_AND_LOAD, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    writers = [
        subprocess.Popen([*command, first, "25"], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        for first in ("1", "4")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, said = writer.communicate()
        assert writer.returncode == 0, said
    assert saved_value(path) in range(1, 7)
    files = list(tmp_path.rglob("*.*"))
    assert len(files) == (1 if name == "b.zip" else 2), files


def test_a_process_that_was_killed_keeps_nobody_waiting(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVE_AND_DIE, "fsync", "2", str(tmp_path / "b")]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    write_bundle(tmp_path / "b", {"p": make(1.0)}, {"value": 1})
    assert saved_value(tmp_path / "b") == 1.0


def test_a_load_that_meets_a_save_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, path = make(1.0), make(2.0), tmp_path / "b"
    write_bundle(path, {"p": old}, {"value": 1})
    read, reads = files.Folder.text, []

    def met(folder: files.Folder) -> bytes:
        text = read(folder)
        reads.append(text)
        if len(reads) == 1:
            write_bundle(path, {"p": new}, {"value": 2})
        return text

    monkeypatch.setattr(files.Folder, "text", met)
    assert saved_value(path) == 2.0
    (next(path.glob("*.safetensors"))).unlink()
    with pytest.raises(BundleError, match="missing"):
        read_bundle(path)
