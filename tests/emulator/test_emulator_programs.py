"""Unmodified programs and suites through `python -m gaudicc.emulator` and the pytest plugin, each in a new interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

IN_THIS_PROCESS = True

PROGRAM = """
import sys
import torch
import habana_frameworks.torch.core as htcore

model = torch.nn.Linear(4, 2).eval().to("hpu")
for size in (2, 3, 2):
    out = model(torch.ones(size, 4).to("hpu"))
    htcore.mark_step()
torch.histc(out, 3)
print(sys.argv[1:], out.device, float(out.sum()) == float(out.cpu().sum()))
"""

GRAPH = """
import torch
import habana_frameworks.torch as ht

kept, x = ht.hpu.HPUGraph(), torch.ones(2, device="hpu")
with ht.hpu.graph(kept):
    y = x + 1
"""

SUITE = """
import habana_frameworks.torch.hpu as hpu
import pytest
import torch

def test_one():
    graph = hpu.wrap_in_hpu_graph(torch.nn.Linear(2, 2).to("hpu"))
    with torch.no_grad():
        first = graph(torch.ones(1, 2, device="hpu"))
        assert graph(torch.zeros(1, 2, device="hpu")) is first

def test_two():
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2).add_(torch.ones(2, device="hpu"))
"""

SPAWNING = """
import multiprocessing

def work(queue):
    from habana_frameworks.torch.hpu import metric_global
    queue.put(dict(metric_global("graph_compilation").stats()))

if __name__ == "__main__":
    import habana_frameworks.torch
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=work, args=(queue,))
    child.start()
    print(queue.get(timeout=60))
    child.join()
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=settings)


def test_program_runs_and_its_account_names_lines(tmp_path: Path) -> None:
    script, account = tmp_path / "program.py", tmp_path / "account.json"
    script.write_text(PROGRAM)
    done = run("-m", "gaudicc.emulator", "--target", "gaudi3", "--report", str(account), str(script), "--x", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['--x', '1'] hpu:0 True\n"
    assert "What a gaudi3 would have done (lazy mode" in done.stderr
    data = json.loads(account.read_text())
    found = {(row["kind"], row["what"].split(":")[0] + row["source"][-3:]): row["count"] for row in data["entries"]}
    kinds = {
        row["kind"]: sum(r["count"] for r in data["entries"] if r["kind"] == row["kind"]) for row in data["entries"]
    }
    assert (kinds["compile"], kinds["hit"], kinds["fallback"], kinds["host_read"], kinds["to_host"]) == (3, 1, 1, 1, 1)
    assert all(row["source"].split(":")[0].endswith("program.py") for row in data["entries"]), found


def test_failing_program_keeps_its_status_and_account(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import habana_frameworks.torch, sys, torch\ntorch.ones(2, device='hpu').cpu()\nsys.exit(3)\n")
    done = run("-m", "gaudicc.emulator", "--mode", "eager", str(script))
    assert done.returncode == 3
    assert "(eager mode" in done.stderr
    assert "copies to the host: 1" in done.stderr


def test_suite_runs_through_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    done = run("-m", "pytest", "-q", "-p", "gaudicc.emulator.pytest_plugin", str(tmp_path), "-p", "no:cacheprovider")
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "HPU graphs captured: 1" in done.stdout
    assert "test_suite.py:9" in done.stdout


AUTOLOADED = """
import importlib.metadata, subprocess, sys, torch
code = "import torch; print(torch.ones(2, device='hpu').device)"
print("hpu" in dir(torch), "habana_frameworks.torch" in sys.modules)
print(importlib.metadata.version("habana-torch-plugin"))
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() or "no device")
"""


def test_torch_loads_the_device_by_itself_but_in_lazy_mode(tmp_path: Path) -> None:
    script = tmp_path / "plain.py"
    script.write_text(AUTOLOADED)
    loaded, not_loaded = "True True\n1.19.0.561\nhpu:0\n", "False False\n1.19.0.561\nno device\n"
    for mode, expected in (("eager", loaded), ("lazy", not_loaded)):
        done = run("-m", "gaudicc.emulator", "--mode", mode, str(script))
        assert done.stdout == expected, done.stderr


def test_when_torch_loads_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from gaudicc.emulator.autoload import is_autoload_enabled

    for lazy, asked, expected in (
        ("1", "1", True),
        ("0", "0", False),
        ("1", "", False),
        ("0", "", True),
        ("", "", False),
    ):
        for name, value in (("PT_HPU_LAZY_MODE", lazy), ("PT_HPU_AUTOLOAD", asked)):
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        assert is_autoload_enabled() is expected, (lazy, asked)


def test_a_suite_needs_no_import_where_torch_loads_the_device(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text("import torch\n\ndef test_one():\n    torch.ones(1, device='hpu')\n")
    plugins = ("-p", "gaudicc.emulator.pytest_plugin", "-p", "no:cacheprovider")
    done = run("-m", "pytest", "-q", *plugins, str(tmp_path), PT_HPU_LAZY_MODE="0")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


# rule 27
def test_spawned_children_have_the_device_too(tmp_path: Path) -> None:
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    done = run("-m", "gaudicc.emulator", str(script))
    assert done.stdout == "{'TotalNumber': 0, 'TotalTime': 0, 'AvgTime': 0}\n", done.stderr


GROUP = """
import os
import torch
import torch.distributed as dist
from habana_frameworks.torch.distributed.hccl import initialize_distributed_hpu

def work(rank, size, port):
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=port)
    dist.init_process_group("hccl", rank=rank, world_size=size)
    x = torch.full((2,), 1.0 + rank, device="hpu")
    dist.all_reduce(x)
    parts = [torch.zeros(2, device="hpu") for _ in range(size)]
    dist.all_gather(parts, torch.full((2,), float(rank), device="hpu"))
    told = [rank]
    dist.broadcast_object_list(told, 1)
    torch.manual_seed(rank)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1).to("hpu"))
    model(x * (rank + 1)).sum().backward()
    dist.barrier()
    if rank == 0:
        print(x.tolist(), [part.tolist() for part in parts], told, model.module.weight.grad.tolist(), dist.get_backend())
    dist.destroy_process_group()

if __name__ == "__main__":
    import socket
    import torch.multiprocessing as mp
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    mp.spawn(work, args=(2, port), nprocs=2)
"""


def test_processes_speak_to_one_another(tmp_path: Path) -> None:
    script = tmp_path / "group.py"
    script.write_text(GROUP)
    done = run("-m", "gaudicc.emulator", str(script))
    assert done.stdout == "[3.0, 3.0] [[0.0, 0.0], [1.0, 1.0]] [1] [[4.5, 4.5]] hccl\n", done.stderr


def test_folders_for_children_do_not_stay_behind(tmp_path: Path) -> None:
    def left() -> int:
        return len(list(tmp_path.glob("gaudicc_emulator_*")))

    waiting, ended = tmp_path / "waiting.py", tmp_path / "ended.py"
    waiting.write_text("print('up', flush=True)\nimport sys; sys.stdin.read()\n")
    ended.write_text(
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import habana_frameworks.torch'])\n"
    )
    start = [sys.executable, "-m", "gaudicc.emulator", str(waiting)]
    settings = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    killed, living = (
        subprocess.Popen(start, env=settings, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) for _ in range(2)
    )
    for process in (killed, living):
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    assert left() == 2
    killed.kill()
    killed.communicate()
    assert left() == 2, "nobody could remove it"
    assert run("-m", "gaudicc.emulator", str(ended), TMPDIR=str(tmp_path)).returncode == 0
    assert left() == 1, "that of the killed one is gone, its own too, the living one's is not"
    living.communicate()
    assert left() == 0


def test_refuses_beside_a_real_install(tmp_path: Path) -> None:
    (tmp_path / "habana_frameworks").mkdir()
    (tmp_path / "habana_frameworks" / "__init__.py").write_text("")
    done = run("-c", "import gaudicc.emulator; gaudicc.emulator.install()", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert "habana_frameworks is installed" in done.stderr


def test_a_torch_that_takes_no_device_in_python_is_named() -> None:
    code = "import torch; del torch._C._acc; import gaudicc.emulator as e; e.install(); import habana_frameworks.torch"
    done = run("-c", code)
    assert done.returncode != 0
    assert "takes no device that is written in Python" in done.stderr
    assert "torch 2.10 or later" in done.stderr


def test_importing_the_emulator_starts_nothing() -> None:
    code = "import gaudicc.emulator, importlib.util as u, sys; print(u.find_spec('habana_frameworks'), 'torch' in sys.modules)"
    assert run("-c", code).stdout == "None False\n"


def test_the_page_of_symbols_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "emulator_symbols.md"
    assert run("-m", "gaudicc.emulator", "-m", "gaudicc.emulator.symbols").stdout == page.read_text()


def test_a_program_that_still_holds_a_graph_ends_quietly(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(GRAPH)
    done = run("-m", "gaudicc.emulator", str(tmp_path / "program.py"))
    assert done.returncode == 0
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("mode", ["lazy", "eager"])
def test_a_program_that_never_imports_torch_keeps_its_status(tmp_path: Path, mode: str) -> None:
    (tmp_path / "program.py").write_text("import sys\nsys.exit(4)\n")
    done = run("-m", "gaudicc.emulator", "--mode", mode, str(tmp_path / "program.py"))
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
