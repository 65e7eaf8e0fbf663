"""Before the flow: builds any causal LM, encoder or sequence-to-sequence model of transformers, without downloads.

By family name with tiny seeded random weights (`build("llama")`), by the name of a real shape without weights
(`build("llama-405b")`, on the meta device), or from a local folder with its safetensors (`build("./my-llama")`).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from gaudicc.errors import InputError, ModelFileError, Where
from gaudicc.models.reference_configs import REFERENCE_CONFIGS
from gaudicc.models.tiny_config import tiny_config

__all__ = ["Task", "build", "example_inputs", "families", "model_types"]

Task = Literal["causal", "seq2seq", "encoder"]

_MAX_TINY_WEIGHTS = 400_000_000
# A family is built for the first of these tasks that it has a class for.
_MAPPINGS: dict[str, str] = {
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "encoder": "MODEL_MAPPING_NAMES",
}


def families() -> tuple[str, ...]:
    """The families that gaudicc's own tests go through first."""
    return ("llama", "mistral", "qwen3", "gemma3_text", "gpt2", "bert", "t5", "mixtral")


def model_types(task: Task) -> tuple[str, ...]:
    """Every text model type that the installed transformers has a class for; encoders are those with a masked LM."""
    return tuple(_mapping("masked" if task == "encoder" else task))


def build(
    name_or_folder: str | Path,
    *,
    task: Task | None = None,
    tiny: bool = True,
    layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    seed: int = 0,
    **overrides: Any,
) -> nn.Module:
    """Builds a model in eval mode.

    Args:
        name_or_folder: a transformers model type (`families`, `model_types`), a name in `REFERENCE_CONFIGS`, or a
            folder with `config.json` and safetensors.
        task: which class of the family; by default sequence-to-sequence if it has one, else the bare encoder if it has
            a masked LM, else causal LM. A folder's own architecture comes first.
        tiny: shrink the family's default sizes (families only).
        layers: number of layers; by default 2 if tiny (more where a family mixes more kinds of layers), else as
            configured.
        dtype: of the weights.
        device: `cpu` or `meta`; by default `cpu`, except for the real shapes of `REFERENCE_CONFIGS`.
        seed: of random weights; the global generator is left as it was.
        overrides: fields of the config, e.g. `hidden_size=128`; they win over everything else. Experts run as
            `batched_mm` (static shapes) unless `experts_implementation` says otherwise.

    Raises:
        InputError: no family, reference config or folder has this name.
        ModelFileError: the folder cannot be loaded, or lacks weights.
    """
    folder = Path(name_or_folder)
    name = str(name_or_folder)
    if (folder / "config.json").is_file():
        return _from_folder(folder, task, dtype)
    experts = overrides.pop("experts_implementation", "batched_mm")
    reference = REFERENCE_CONFIGS.get(name)
    model_class = _model_class(reference.model_type if reference else name, task)
    _refuse_unknown_fields(model_class.config_class, overrides)
    if tiny and not reference:
        config = _tiny_config(model_class, 2 if layers is None else layers, overrides)
    else:
        depth = {} if layers is None else {"num_hidden_layers": layers}
        config = model_class.config_class(**((reference.arguments if reference else {}) | depth | overrides))
    device = device or (reference.device if reference else "cpu")
    return _random_model(model_class, config, dtype, device, seed, experts)


def example_inputs(model: nn.Module, batch: int = 2, sequence: int = 16) -> dict[str, Any]:
    """Random inputs as keyword arguments of the model's forward, on its device.

    Args:
        model: a model of `build`.
        batch: rows; the first is padded by two tokens, on the left for a decoder and on the right otherwise.
        sequence: tokens a row; a decoder behind an encoder gets half as many.

    Returns:
        `input_ids` and, as far as the model takes them, `attention_mask` (int64, (batch, sequence)),
        `decoder_input_ids` (int64, (batch, max(2, sequence // 2))) and `use_cache=False`.
    """
    if (main := getattr(model, "main_input_name", "input_ids")) != "input_ids":
        raise InputError(f"{type(model).__name__} reads {main}, not text", hint="make its inputs by hand")
    accepted = inspect.signature(model.forward).parameters
    config = cast(Any, model.config)
    vocab = min(90, _text_config(config).vocab_size)  # tiny configs keep special ids at 90 and above
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)

    def ids(rows: int, length: int) -> Tensor:
        return torch.randint(3, vocab, (rows, length), generator=generator).to(device)

    codebooks = getattr(model, "num_codebooks", 1)  # musicgen reads one row of ids per codebook
    inputs: dict[str, Any] = {"input_ids": ids(batch * codebooks, sequence)}
    if "attention_mask" in accepted:
        mask = torch.ones(batch, sequence, dtype=torch.int64, device=device)
        pad = min(2, sequence - 1)
        # A decoder continues its last column, so that its padding must be on the left.
        decoder = cast(Any, model).can_generate() and not config.is_encoder_decoder
        mask[0, slice(0, pad) if decoder else slice(sequence - pad, None)] = 0
        inputs["attention_mask"] = mask
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = ids(batch, max(2, sequence // 2))
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def _mapping(task: str) -> dict[str, str | tuple[str, ...]]:
    from transformers.models.auto import modeling_auto

    return dict(getattr(modeling_auto, _MAPPINGS[task]))


def _model_class(model_type: str, task: Task | None) -> Any:
    import transformers

    order = [task] if task is not None else list(_MAPPINGS)
    found = next((kind for kind in order if model_type in _mapping(kind)), None)
    if found is None:
        raise InputError(
            f"no transformers model type, reference config or folder with config.json is called {model_type!r}"
            + (f" for task {task}" if task else ""),
            hint=f"one of {', '.join((*families(), *REFERENCE_CONFIGS))}, another model type, or a folder",
        )
    kind = "encoder" if found == "masked" else found
    entry = _mapping(kind)[model_type]  # a few types name several classes, the most complete first
    return getattr(transformers, entry if isinstance(entry, str) else entry[0])


def _text_config(config: Any) -> Any:
    return config if hasattr(config, "vocab_size") else config.get_text_config(decoder=True)


def _refuse_unknown_fields(config_class: Any, overrides: dict[str, Any]) -> None:
    """A config takes any keyword and keeps it unused: a misspelt override would change nothing and say nothing."""
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    if unknown := [name for name in overrides if name not in known]:
        raise InputError(f"{config_class.__name__} has no field {unknown[0]!r}", hint="check the spelling")


def _tiny_config(model_class: Any, layers: int, overrides: dict[str, Any]) -> Any:
    def accept(config: Any) -> None:
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in model_class._from_config(config).parameters())
        if weights > _MAX_TINY_WEIGHTS:
            raise ValueError(f"{weights / 1e6:.0f} M weights after shrinking")

    try:
        return tiny_config(model_class.config_class, layers, overrides, accept)
    except Exception as error:
        raise InputError(
            f"no tiny config of {model_class.__name__} can be derived: {error}",
            hint="pass sizes of your own as overrides with tiny=False, or a folder",
        ) from error


def _random_model(model_class: Any, config: Any, dtype: torch.dtype, device: str, seed: int, experts: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model: nn.Module = model_class._from_config(config, dtype=dtype, experts_implementation=experts)
        if device != "meta":
            _fill_uninitialised(model)
    if device != "meta" and dtype != torch.float32:  # torch versions differ in what they draw in a narrower dtype
        wide = _random_model(model_class, copy.deepcopy(config), torch.float32, device, seed, experts)
        model.load_state_dict(wide.state_dict())
    return model.eval()


def _fill_uninitialised(model: nn.Module) -> None:
    """Some families leave a few weights as `torch.empty` made them, for a checkpoint to fill."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                weight.normal_(0, 0.02)


def _from_folder(folder: Path, task: Task | None, dtype: torch.dtype) -> nn.Module:
    import transformers
    from safetensors import SafetensorError

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        own = next((name for name in config.architectures or () if hasattr(transformers, name)), None)
        model_class = getattr(transformers, own) if own and task is None else _model_class(config.model_type, task)
        model, report = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelFileError(f"no model can be loaded: {error}", where=Where(source=str(folder))) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelFileError(
            f"{len(missing)} weights of {model_class.__name__} are not in the folder, among them {missing[0]}",
            where=Where(source=str(folder)),
            hint="pass the task that the checkpoint was saved for",
        )
    return cast(nn.Module, model.eval())
