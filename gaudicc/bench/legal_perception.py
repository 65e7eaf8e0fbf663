"""Models of transformers that see or hear, for `gaudicc.bench.legal_models`: default sizes, two layers, random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MAPPINGS = {
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
}
_SAMPLES = 8000  # half a second
_FRAMES = {"whisper": 3000, "audio-spectrogram-transformer": 1024}  # otherwise a second


def perceiving_types(task: str) -> tuple[str, ...]:
    """Every model type with a classifier of images or sounds, or a recogniser of speech."""
    return tuple(_names(task))


def perceiving(name: str, task: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model in eval mode and one example of its inputs.

    Args:
        name: a model type.
        task: a key of `MAPPINGS`.
    """
    import transformers

    entry = _names(task)[name]
    kind: Any = getattr(transformers, entry if isinstance(entry, str) else entry[0])
    config = kind.config_class()
    for part in (config, *(getattr(config, f"{part}_config", None) for part in ("vision", "text", "encoder"))):
        if isinstance(getattr(part, "num_hidden_layers", None), int) and not hasattr(part, "depths"):
            part.num_hidden_layers = 2
    if isinstance(getattr(config, "vocab_size", None), int):
        config.vocab_size = min(config.vocab_size, 1024)
    elif hasattr(config, "vocab_size"):
        config.vocab_size = 1024  # of a recogniser that is told its alphabet later
    torch.manual_seed(0)
    model = kind._from_config(config).eval()
    return model, _example(model, config, name)


def _example(model: Any, config: Any, name: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name in ("pixel_values", "inputs"):
        pictures = getattr(config, "vision_config", config)
        size = getattr(pictures, "image_size", None) or 224
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(pictures, "num_channels", 3)
        return {model.main_input_name: torch.randn((1, channels, height, width), generator=generator)}
    if model.main_input_name == "input_features" or name in _FRAMES:
        encoder = getattr(config, "encoder_config", config)
        fields = ("num_mel_bins", "feature_projection_input_dim", "input_dim")
        bins = next((getattr(encoder, field) for field in fields if hasattr(encoder, field)), 80)
        frames = _FRAMES.get(name, 100)
        shape = (1, bins, frames) if name == "whisper" else (1, frames, bins)
        key = "input_values" if name == "audio-spectrogram-transformer" else "input_features"
        return {key: torch.randn(shape, generator=generator)}
    if model.main_input_name == "input_ids":  # colours of a palette
        return {"input_ids": torch.randint(0, config.vocab_size, (1, 64), generator=generator)}
    return {"input_values": torch.randn((1, _SAMPLES), generator=generator)}


def _names(task: str) -> dict[str, Any]:
    from transformers.models.auto import modeling_auto

    return dict(getattr(modeling_auto, MAPPINGS[task]))
