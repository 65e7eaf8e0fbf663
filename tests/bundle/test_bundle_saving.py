"""A save that fails or is killed leaves the bundle that was there before; a save that succeeds leaves no litter."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gaudicc.bundle import read_bundle, write_bundle
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
