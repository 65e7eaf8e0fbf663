"""Command line, first step: picks the command, parses its options, and turns every failure into an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gaudicc.cli.links import require_links
from gaudicc.errors import GaudiccError, InternalError, Where

OK, USER_ERROR, USAGE, OUR_FAULT, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(frozen=True, slots=True)
class Command:
    """One command. Its modules are imported when it is chosen, so that `--help` of one does not pay for another.

    Attributes:
        summary: one line for `gaudicc --help`.
        options: `module:dataclass` whose fields are the flags.
        run: `module:function` that takes the options and returns the exit code.
    """

    summary: str
    options: str
    run: str


COMMANDS: dict[str, Command] = {
    "compile": Command(
        "compile a model and show what each pass did",
        "gaudicc.cli.options:CompileOptions",
        "gaudicc.cli.compiling:run",
    ),
    "run": Command(
        "run a model or a saved bundle",
        "gaudicc.cli.options:RunOptions",
        "gaudicc.cli.running:run",
    ),
    "generate": Command(
        "generate text with a causal language model",
        "gaudicc.cli.options_lm:GenerateOptions",
        "gaudicc.cli.generating:run",
    ),
    "check": Command(
        "list what stands between a model and the target",
        "gaudicc.cli.options:CheckOptions",
        "gaudicc.cli.checking:run",
    ),
    "plan": Command(
        "show what is recorded per bucket, and whether it fits on so many cards",
        "gaudicc.cli.options_plan:PlanOptions",
        "gaudicc.cli.planning:run",
    ),
    "profile": Command(
        "show what each engine does and when, modelled or from a trace",
        "gaudicc.cli.options_profile:ProfileOptions",
        "gaudicc.cli.profiling:run",
    ),
    "passes": Command(
        "list the passes in order",
        "gaudicc.cli.options:PassesOptions",
        "gaudicc.cli.passes_list:run",
    ),
    "doctor": Command(
        "show versions, devices and tables here",
        "gaudicc.cli.options:DoctorOptions",
        "gaudicc.cli.doctor:run",
    ),
    "bench compile": Command(
        "time the passes beside torch.export, by number of layers",
        "gaudicc.cli.options:BenchCompileOptions",
        "gaudicc.bench.compiling:run",
    ),
    "bench lm": Command(
        "time decode, prefill and a stream of requests beside peers and floors",
        "gaudicc.cli.options_lm:BenchLmOptions",
        "gaudicc.bench.lm:run",
    ),
    "bench cuda": Command(
        "time CUDA graphs on an NVIDIA GPU beside eager and torch.compile",
        "gaudicc.cli.options_cuda:BenchCudaOptions",
        "gaudicc.bench.cuda:run",
    ),
    "bench story": Command(
        "port a CUDA-style stack stage by stage on the emulated device",
        "gaudicc.cli.options_story:BenchStoryOptions",
        "gaudicc.bench.story:run",
    ),
    "buckets plan": Command(
        "plan buckets for the traffic of a trace",
        "gaudicc.buckets.options:PlanOptions",
        "gaudicc.buckets.cli:plan",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; those of this process by default.

    Returns:
        The exit code: 0, 1 for a user error, 2 for usage, 3 for a fault of gaudicc.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # tyro: 0 after help, 2 for usage
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, e.g. `gaudicc passes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        shown = error if isinstance(error, GaudiccError) else _as_internal(error)
        print(f"error: {shown}", file=sys.stderr)
        return OUR_FAULT if isinstance(shown, InternalError) else USER_ERROR


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return OK if arguments else USAGE
    name, rest = _command(arguments)
    if name not in COMMANDS:
        group = [known for known in COMMANDS if known.startswith(f"{name} ")]
        if group and rest[:1] in (["-h"], ["--help"]):
            print(_help(group))
            return OK
        hint = f"{name} needs one of: {', '.join(group)}" if group else f"no command {name!r}: {', '.join(COMMANDS)}"
        print(f"{hint}\nsee gaudicc --help", file=sys.stderr)
        return USAGE
    import tyro

    command = COMMANDS[name]
    options = tyro.cli(
        _load(command.options), prog=f"gaudicc {name}", args=rest, config=(tyro.conf.FlagCreatePairsOff,)
    )
    if name != "doctor":  # which reports broken links instead of failing on them
        require_links()
    code: int = _load(command.run)(options)
    return code


def _command(arguments: list[str]) -> tuple[str, list[str]]:
    """The name of the command, of one word or two, and what follows it."""
    two = " ".join(arguments[:2])
    return (two, arguments[2:]) if two in COMMANDS else (arguments[0], arguments[1:])


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _help(names: Sequence[str] = tuple(COMMANDS)) -> str:
    width = max(map(len, names))
    lines = [f"  {name.ljust(width)}  {COMMANDS[name].summary}" for name in names]
    return "\n".join(
        [
            "usage: gaudicc COMMAND [OPTIONS]",
            "",
            "Compiles PyTorch models for inference on Intel Gaudi. Nothing of it was ever run on a Gaudi.",
            "",
            *lines,
            "",
            "  gaudicc COMMAND --help   the options of a command",
            "  --json                   data as JSON (every command); data goes to stdout, messages to stderr",
            "  --traceback              Python's traceback of an error as well (every command)",
            "",
            "exit code: 0 done, 1 user error, 2 usage, 3 a fault of gaudicc",
        ]
    )


def _as_internal(error: Exception) -> InternalError:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{'/'.join(last.filename.split('/')[-2:])}:{last.lineno}"
    first = next(iter(str(error).splitlines()), "")
    hint = f"{InternalError.hint}; --traceback shows how it came about"
    return InternalError(f"{type(error).__name__}: {first}", where=Where(source=place), hint=hint)
