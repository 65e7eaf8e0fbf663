"""Which Gaudi software is here, which execution mode it runs, and which of its environment flags are set badly.

Lazy mode has recorded graphs and is declared legacy; eager and compile mode is Intel's present default and has no graph
object, but recipes. The default of `PT_HPU_LAZY_MODE` changed between releases, so the installed software is asked.
Sources: HabanaAI/gaudi-pytorch-bridge 1.19.0, `scripts/env_flags.yaml`; docs.habana.ai, PyTorch support matrix.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

import torch

from gaudicc.errors import DeviceError, Where
from gaudicc.targets import Mode

PACKAGE = "habana_frameworks"
CHIPS = {"GAUDI2": "gaudi2", "GAUDI3": "gaudi3"}
_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})
_STAGE = Where(stage="opening device hpu")


@dataclass(frozen=True, slots=True)
class Software:
    """Gaudi software that answers.

    Attributes:
        release: its version.
        emulated: it is gaudicc's emulator.
        chip: `gaudi2` or `gaudi3`.
        mode: the execution mode of this process.
        int64: int64 keeps 64 bits.
        why: a sentence: which mode, and why.
    """

    release: str
    emulated: bool
    chip: str
    mode: Mode
    int64: bool
    why: str


def installed() -> bool:
    """Whether Gaudi software can be imported, real or emulated; says nothing of whether a card answers."""
    return importlib.util.find_spec(PACKAGE) is not None


def emulated() -> bool:
    """Whether what can be imported is gaudicc's emulator."""
    spec = importlib.util.find_spec(PACKAGE)
    return spec is not None and type(spec.loader).__module__.startswith("gaudicc.emulator")


def start() -> Software:
    """Imports the Gaudi software and asks it what it is.

    Raises:
        DeviceError: there is none, no card answers, or the card is none that gaudicc knows.
    """
    if not installed():
        raise DeviceError(
            f"{PACKAGE} is not installed: there is no Gaudi software here",
            where=_STAGE,
            hint="without a Gaudi, run the program on the emulated device: python -m gaudicc.emulator script.py",
        )
    try:
        from habana_frameworks.torch import hpu
        from habana_frameworks.torch.utils.internal import is_lazy
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            f"{PACKAGE} cannot be imported: {str(error).splitlines()[0]}",
            where=_STAGE,
            hint="its torch and its own version must be paired: see Intel's support matrix",
        ) from error
    if not hpu.is_available():
        raise DeviceError("no Gaudi answers", where=_STAGE, hint="hl-smi shows which cards there are and who has them")
    name = str(hpu.get_device_name()).upper()
    if name not in CHIPS:
        raise DeviceError(f"the card is a {name}", where=_STAGE, hint=f"gaudicc knows {', '.join(CHIPS)}")
    lazy, why = _mode(bool(is_lazy()), hasattr(hpu, "HPUGraph"))
    int64 = not lazy and _flag(os.environ, "PT_ENABLE_INT64_SUPPORT", True)
    return Software(_release(), emulated(), CHIPS[name], Mode.LAZY if lazy else Mode.COMPILE, int64, why)


def _mode(lazy: bool, graphs: bool) -> tuple[bool, str]:
    given = os.environ.get("PT_HPU_LAZY_MODE")
    said = "PT_HPU_LAZY_MODE is not set and this is its default" if given is None else f"PT_HPU_LAZY_MODE={given}"
    if lazy and not graphs:
        raise DeviceError(
            "the software runs lazy mode, but has no HPUGraph", where=_STAGE, hint="set PT_HPU_LAZY_MODE=0"
        )
    return lazy, f"lazy mode with HPU graphs: {said}" if lazy else f"eager and compile mode with hpu_backend: {said}"


def _release() -> str:
    if emulated():
        from gaudicc.targets.target import RELEASE

        return RELEASE
    for distribution in ("habana-torch-plugin", "habana_torch_plugin"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _flag(environment: Mapping[str, str], name: str, default: bool) -> bool:
    value = environment.get(name, "")
    return value.lower() in _TRUE if value else default


def _lazy_mode(value: str, lazy: bool) -> str:
    return "" if value else "its default is 1 in release 1.19 and 0 in later ones: set it"


def _recipe_cache(value: str, lazy: bool) -> str:
    fields = value.split(",")
    if not value:
        return "recipes are compiled anew in every process: set path,false,megabytes"
    if len(fields) not in (3, 4):
        return "it has three or four fields: path,delete_on_start,megabytes[,on_nfs]"
    return "recipes are deleted at every start" if fields[1].lower() in _TRUE else ""


def _place_on_cpu(value: str, lazy: bool) -> str:
    return "" if value.lower() == "none" else "eager fallback of what gaudicc did not compile is silent: set it to none"


def _only(text: str) -> Callable[[str, bool], str]:
    """Wrong where it is on."""
    return lambda value, lazy: text if value.lower() in _TRUE else ""


def _max_ops(value: str, lazy: bool) -> str:
    return "recorded graphs are split after so many ops" if value and lazy else ""


def _int64(value: str, lazy: bool) -> str:
    if lazy:
        return "lazy mode does not heed it" if value else ""
    return "int64 is narrowed to int32" if value and value.lower() not in _TRUE else ""


FLAGS: dict[str, Callable[[str, bool], str]] = {
    "PT_HPU_LAZY_MODE": _lazy_mode,
    "PT_HPU_RECIPE_CACHE_CONFIG": _recipe_cache,
    "PT_HPU_PLACE_ON_CPU": _place_on_cpu,
    "PT_ENABLE_INT64_SUPPORT": _int64,
    "PT_HPU_MAX_COMPOUND_OP_SIZE": _max_ops,
    "PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES": _only("gaudicc's graphs are static: it only costs compile time"),
    "PT_COMPILE_ONLY_MODE": _only("nothing is launched: results are garbage"),
    "PT_HPU_COMPILE_GRAPH_FREEZE": _only("weights become constants of recipes: layers share none"),
    "PT_HPU_ENABLE_LAZY_COLLECTIVES": lambda value, lazy: (
        "collectives cannot be recorded, should there be several cards" if lazy and value.lower() not in _TRUE else ""
    ),
}
"""Flag -> what is wrong with its value, "" if nothing: (value or "", whether lazy mode runs)."""


PAIRS = {
    "1.19": "2.5", "1.20": "2.6", "1.21": "2.6", "1.22": "2.7", "1.23": "2.9", "1.24": "2.10",
}  # fmt: skip
"""Release of Gaudi software -> the torch that it is built for; 1.24.1 takes 2.11 too. Source: Intel's support matrices."""


def describe() -> str:
    """The Gaudi software here in a sentence, without opening a card."""
    if not installed():
        return "not installed"
    if emulated():
        return "emulated by gaudicc in this process"
    release, version = _release(), torch.__version__
    wanted = PAIRS.get(".".join(release.split(".")[:2]))
    if wanted is None:
        return f"{release}, which torch it pairs with is not known"
    paired = version.split(".")[:2] == wanted.split(".") or (
        release.startswith("1.24.1") and version.startswith("2.11")
    )
    return f"{release} with torch {version}" + ("" if paired else f": wrong, it pairs with torch {wanted}")


def flags(environment: Mapping[str, str], *, lazy: bool) -> dict[str, str]:
    """The flags that matter, each with its value and what is wrong with it.

    Args:
        environment: variables by name.
        lazy: whether lazy mode runs.
    """
    shown = {}
    for name, judge in FLAGS.items():
        value = environment.get(name, "")
        wrong = judge(value, lazy)
        shown[name] = f"{value or 'not set'}: {wrong or 'ok'}"
    return shown
