"""Capture of what torch.export has captured already: exported programs and `.pt2` files."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import torch
from torch.export import ExportedProgram

from gaudicc.calling import Parameter
from gaudicc.capture import refusals
from gaudicc.capture.convert import from_exported
from gaudicc.errors import InputError, ModelFileError
from gaudicc.program import Program


def load_pt2(path: Path) -> ExportedProgram:
    """Reads a `.pt2` file, which can run code from it.

    Raises:
        ModelFileError: there is none, or it is no such file.
    """
    if not path.exists():
        raise ModelFileError(f"no file {path}")
    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise ModelFileError(f"{path} is not a readable .pt2 file: {error}") from error


def from_exported_program(exported: ExportedProgram) -> Program:
    """The program of a model that torch.export captured, by the names that are left of its arguments.

    Raises:
        InputError: it carries no example inputs.
    """
    if exported.example_inputs is None:
        raise InputError(
            "the exported program carries no example inputs", hint="export it again with torch.export.export"
        )
    args, kwargs = exported.example_inputs
    leaves = refusals.leaf_paths([f"arg{i}" for i in range(len(args))], args, kwargs)
    paths = tuple(path for path, _ in leaves)
    # An exported program has forgotten the names of positional arguments.
    parameters = (
        *(Parameter(f"arg{i}", "POSITIONAL_ONLY") for i in range(len(args))),
        *(Parameter(name, "KEYWORD_ONLY") for name in sorted(kwargs)),
    )
    return from_exported(exported, paths, tuple(leaf for _, leaf in leaves), parameters)
