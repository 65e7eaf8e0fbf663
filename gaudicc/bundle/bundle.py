"""Bundle: the front door. Programs and a manifest -> a folder or zip of JSON and safetensors, and back.

Nothing of a bundle is ever run to read it: no pickle, no code, no import of what it names. docs/bundle.md has the
format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gaudicc.bundle import files, programs
from gaudicc.bundle.item import Item, error, parse, render
from gaudicc.bundle.tensors import Region, TensorWriter, read_tensors
from gaudicc.errors import BundleError
from gaudicc.program import Program

FORMAT = "gaudicc-bundle"
VERSION = 1
_PATIENCE = 100
"""How often a load starts again because the bundle was saved over meanwhile."""
_UNSAVED = "nothing was written; save the program as it was before this step, or without what is named here"

JSON = Any  # what json.dumps takes: None, truth values, numbers, strings, lists and dicts with string keys


def write_bundle(path: Path, programs_by_key: Mapping[str, Program], manifest: Mapping[str, JSON]) -> None:
    """Saves programs that share their tensors.

    An interrupted or failed save leaves what was at `path` before. Tensors are written straight from where they lie.

    Args:
        path: a path that ends in `.zip` gives a zip, any other a folder; missing parents are made.
        programs_by_key: the programs by name, e.g. `captured`, `bucket:sequence=128`.
        manifest: what else to keep, as plain JSON.

    Raises:
        BundleError: a program or the manifest holds what no bundle can hold, or the files cannot be written.
    """
    tensors = TensorWriter()
    encoded = {key: _encode(path, key, program, tensors) for key, program in programs_by_key.items()}
    table = tensors.describe()
    content = {"format": FORMAT, "version": VERSION, "manifest": dict(manifest), "tensors": table, "programs": encoded}
    try:
        text = render(content)
    except (TypeError, ValueError) as problem:
        raise error(
            f"the manifest is not plain JSON: {problem}", str(path), "pass numbers, strings, lists, dicts"
        ) from problem
    if len(text) > files.MAX_JSON:
        raise error(
            f"the programs make {len(text)} bytes of JSON, more than {files.MAX_JSON}", str(path), "save fewer buckets"
        )
    _check(path, text, tensors)
    files.save(path, text, str(table["file"]), tensors)


def read_bundle(path: Path) -> tuple[dict[str, Program], dict[str, JSON]]:
    """Loads what `write_bundle` saved.

    Tensors are mapped from the file: they take memory when they are used, and writing to one does not change the file.

    Args:
        path: the folder or zip.

    Returns:
        The programs by name, which share tensors as they did when saved, and the manifest.

    Raises:
        BundleError: there is no bundle, or it is damaged, doctored or of another version.
    """
    root, region, name = _open(path)
    tensors = read_tensors(_top(root)["tensors"], region, str(path / name))
    return _decode(root, tensors)


def _open(path: Path) -> tuple[Item, Region, str]:
    """The JSON, and the tensors that it names with their file's name; read again if another process saves in between."""
    for patience in range(_PATIENCE, -1, -1):
        with files.opened(path) as bundle:
            text = bundle.text()
            root = parse(text, f"{path}: ")
            name = _top(root)["tensors"].fields(("file", "storages", "views"))["file"]
            if not files.TENSORS_NAME.fullmatch(name.text()):
                name.fail(f"{name.text()[:80]!r} is no name of a tensors file")
            try:
                return root, bundle.tensors(name.text()), name.text()
            except BundleError:
                if not patience or bundle.text() == text:
                    raise
    raise AssertionError("the last round returns or raises")


def _encode(path: Path, key: str, program: Program, tensors: TensorWriter) -> dict[str, object]:
    try:
        return programs.encode(key, program, tensors)
    except TypeError as problem:
        raise error(f"the program {key!r} cannot be saved: {problem}", str(path), _UNSAVED) from problem


def _check(path: Path, text: bytes, tensors: TensorWriter) -> None:
    """What cannot be read back is not written."""
    try:
        _decode(parse(text, f"{path}: "), tensors.tensors)
    except BundleError as problem:
        raise BundleError(problem.what, where=problem.where, hint=_UNSAVED) from problem


def _top(root: Item) -> dict[str, Item]:
    found = root.entries()
    if "format" not in found or found["format"].value != FORMAT:
        root.fail("this is no gaudicc bundle")
    if "version" not in found or found["version"].value != VERSION:
        version = found["version"].value if "version" in found else None
        raise error(
            f"the bundle has version {version!r:.80}, this gaudicc reads {VERSION}",
            root.place,
            "save it again with this gaudicc",
        )
    return root.fields(("format", "version", "manifest", "tensors", "programs"))


def _decode(root: Item, tensors: Sequence[torch.Tensor]) -> tuple[dict[str, Program], dict[str, JSON]]:
    fields = _top(root)
    loaded = {key: programs.decode(item, tensors) for key, item in fields["programs"].entries().items()}
    manifest = {key: item.value for key, item in fields["manifest"].entries().items()}
    return loaded, manifest
