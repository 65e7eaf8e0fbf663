"""Command line: the MODEL argument -> a model with example inputs; --dynamic and --buckets -> what compile takes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from gaudicc.buckets import BucketForm
from gaudicc.errors import InputError, ModelFileError

SIZES = {"batch": 0, "sequence": 1}  # the dims of every tensor that the registry's example inputs have


@dataclass(frozen=True, slots=True)
class Source:
    """What MODEL stands for.

    Attributes:
        model: as `gaudicc.compile` takes it.
        inputs: example keyword arguments; empty for a `.pt2` file, which carries its own.
    """

    model: Any
    inputs: Mapping[str, Any]


def is_bundle(name: str) -> bool:
    """Whether MODEL is a saved bundle, by its place: a `.zip`, or a folder with `bundle.json`."""
    path = Path(name)
    return path.suffix == ".zip" or (path / "bundle.json").is_file()


def open_source(name: str, *, batch: int, sequence: int, trust: bool) -> Source:
    """Finds and loads the model.

    Args:
        name: the MODEL argument.
        batch: rows of the example inputs.
        sequence: tokens a row.
        trust: whether a `.pt2` file may be loaded.

    Raises:
        InputError: nothing has this name, or `--trust` is missing.
        ModelFileError: there is a path, but no model at it.
    """
    path = Path(name)
    if batch < 1 or sequence < 1:
        raise InputError(f"batch is {batch} and sequence {sequence}", hint="give both at least 1")
    if is_bundle(name):
        raise InputError(f"{name} is a bundle, which is compiled already", hint=f"gaudicc run {name}")
    if path.suffix == ".pt2":
        return Source(_trusted(path, trust), {})
    if (os.sep in name or path.exists()) and not (path / "config.json").is_file():
        what = "has no config.json" if path.is_dir() else "is no folder"
        raise ModelFileError(f"{name} {what}", hint="give a transformers folder, a .pt2 file or the name of a model")
    try:
        from gaudicc.models import load

        model, inputs = load(name, batch=batch, sequence=sequence)
    except ModuleNotFoundError as error:
        raise ModelFileError(f"{name} needs {error.name}", hint="pip install gaudicc[models]") from error
    return Source(model, inputs)


def _trusted(path: Path, trust: bool) -> Path:
    if not path.is_file():
        raise ModelFileError(f"no file {path}")
    if not trust:
        raise InputError(
            f"{path} is a .pt2 file, and loading one can run code from it",
            hint="add --trust if you made it, or trust who did",
        )
    return path


def parse_dynamic(
    entries: Sequence[str], source: Source, *, batch: int, sequence: int
) -> dict[str, dict[int, Any]] | None:
    """`batch=8 sequence=2..512` -> dynamic shapes by argument name.

    Raises:
        InputError: an entry is malformed, or no input has such a size.
    """
    if not entries:
        return None
    if not source.inputs:
        raise InputError("--dynamic says nothing about a .pt2 file", hint="export it with its dynamic shapes")
    shapes: dict[str, dict[int, Any]] = {}
    for entry in entries:
        found = re.fullmatch(r"(batch|sequence)=(?:(\d+)\.\.)?(\d+)", entry)
        if found is None:
            raise InputError(f"--dynamic {entry} is not understood", hint="write batch=8, or sequence=2..512")
        name, low, high = found[1], int(found[2] or 1), int(found[3])
        example = {"batch": batch, "sequence": sequence}[name]
        if not low <= example <= high:
            raise InputError(
                f"the example has {name} {example}, outside {low}..{high}", hint=f"give --{name} inside it"
            )
        dim = Dim(name, min=low, max=high)
        for argument, value in source.inputs.items():
            position = SIZES[name]
            if isinstance(value, torch.Tensor) and value.dim() > position and value.shape[position] == example:
                shapes.setdefault(argument, {})[position] = dim
    return shapes


def parse_bucket_entries(entries: Sequence[str]) -> BucketForm:
    """`exp`, or `batch=1,sequence=64 batch=1,sequence=128` -> the `buckets` of compile.

    Raises:
        InputError: an entry is malformed.
    """
    if not entries:
        return None
    if len(entries) == 1 and "=" not in entries[0]:
        return entries[0]
    buckets = []
    for entry in entries:
        if not re.fullmatch(r"\w+=\d+(,\w+=\d+)*", entry):
            raise InputError(f"--buckets {entry} is not understood", hint="write exp, or batch=1,sequence=64")
        buckets.append({name: int(size) for name, _, size in (part.partition("=") for part in entry.split(","))})
    return buckets
