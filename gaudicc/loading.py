"""load(): a bundle that `CompiledModel.save` wrote -> CompiledModel, without the model's code and without running any from it."""

from __future__ import annotations

from pathlib import Path

from gaudicc.buckets import Bucket, BucketSet
from gaudicc.bundle import Item, read_bundle
from gaudicc.compiled import CompiledModel
from gaudicc.errors import BundleError, InputError, Where
from gaudicc.invariants import CATALOGUE
from gaudicc.runtime.select import open_device
from gaudicc.trace import CompileTrace


def load(path: str | Path, *, device: str = "auto", outputs: str = "fresh") -> CompiledModel:
    """Loads a bundle. Runs no code from it, and needs none of the model's.

    Args:
        path: what `CompiledModel.save` wrote.
        device: as in `compile`.
        outputs: as in `compile`.

    Returns:
        The compiled model, without the trace of its passes.

    Raises:
        BundleError: the bundle is damaged, doctored, or of another version.
    """
    if not isinstance(path, (str, Path)):
        raise InputError(f"the bundle is a {type(path).__name__}", hint="pass the path of a folder or zip")
    if outputs not in ("fresh", "borrow"):
        raise InputError(f"outputs is {outputs!r}", hint="choose one of fresh, borrow")
    programs, content = read_bundle(Path(path))
    manifest = Item(content, f"{path}: manifest").fields(("buckets", "dims", "proved", "notes"))
    dims = tuple(item.identifier() for item in manifest["dims"].items())
    buckets = [
        Bucket(dims, tuple(size.integer() for size in sizes.items(len(dims)))) for sizes in manifest["buckets"].items()
    ]
    known = {invariant.name: invariant for invariant in CATALOGUE}
    proved = [known[item.choice(known, "invariant")] for item in manifest["proved"].items()]
    notes = [item.text() for item in manifest["notes"].items()]
    expected = {"symbolic", *(f"bucket:{bucket}" for bucket in buckets)}
    if set(programs) != expected or not buckets:
        raise BundleError(
            f"the bundle holds the programs {sorted(programs)}, its manifest speaks of {sorted(expected)}",
            where=Where(source=str(path)),
        )
    opened, chosen = open_device(device)
    return CompiledModel(
        programs["symbolic"],
        {bucket: programs[f"bucket:{bucket}"] for bucket in buckets},
        BucketSet(buckets),
        CompileTrace(),
        opened,
        ensured=frozenset(proved),
        borrow=outputs == "borrow",
        notes=(chosen, *notes),
    )
