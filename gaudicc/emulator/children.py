"""Child processes that start a new interpreter find the emulated package too, while their parent lives.

A folder with a stand-in for `habana_frameworks` is put on `PYTHONPATH`; the stand-in calls `install` and steps aside. The
folder says that the package is installed, to torch as well, and is made for this process and removed at its end. A process
that is killed leaves its folder behind; the next one that starts removes it, for the lock on it is gone.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path

from gaudicc.emulator.autoload import ENTRY_POINTS, PACKAGE
from gaudicc.targets.target import RELEASE

_PREFIX = "gaudicc_emulator_"
_BUILD = (
    f"{RELEASE}.561"  # packages name the build too, which vLLM asks for: vllm-project/vllm-gaudi, docs/general/faq.md
)
STAND_IN = '''"""Made by gaudicc for a child process: serves the emulated package instead of itself."""
import importlib
import sys

sys.path[:] = [folder for folder in sys.path if folder != {folder!r}]
sys.modules.pop(__name__)
importlib.invalidate_caches()
importlib.import_module("gaudicc.emulator").install()
importlib.import_module(__name__)
'''


def serve_children() -> None:
    """Put the stand-in on `PYTHONPATH` of later child processes."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_if_left_behind(left)
    folder = _own_folder()
    (folder / "habana_frameworks").mkdir()
    text = STAND_IN.format(folder=str(folder))
    (folder / "habana_frameworks" / "__init__.py").write_text(text, encoding="utf-8")
    known = (
        folder / f"{PACKAGE.replace('-', '_')}-{_BUILD}.dist-info"
    )  # for pip, importlib.metadata, and torch, which looks for entry points
    known.mkdir()
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {_BUILD}\n", encoding="utf-8")
    (known / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    sys.path.append(str(folder))  # what multiprocessing hands to a spawned child; here our own finder comes first
    parent = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == parent else None)


def _own_folder() -> Path:
    """A new folder that is locked while this process and those forked from it live."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another one that starts took it for left behind
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        os.close(lock)


def _remove_if_left_behind(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:  # gone, or another user's
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def is_stand_in(spec: ModuleSpec) -> bool:
    """Whether a spec of `habana_frameworks` is the stand-in that a parent put there."""
    return spec.origin is not None and Path(spec.origin).parents[1].name.startswith(_PREFIX)
