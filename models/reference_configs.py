"""Before the flow: named model shapes that benchmarks and plans refer to, as transformers config arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["REFERENCE_CONFIGS", "ReferenceConfig"]


@dataclass(frozen=True)
class ReferenceConfig:
    """A published or agreed shape of a model.

    Attributes:
        model_type: the transformers family.
        arguments: of its config class.
        source: where the numbers come from.
        device: where it is built unless told otherwise; `meta` for shapes too big to give weights to.
    """

    model_type: str
    arguments: dict[str, Any]
    source: str
    device: str = "cpu"


_HERD = "The Llama 3 Herd of Models (arXiv:2407.21783), table 3; vocabulary and context as in the published config.json"


def _llama3(hidden: int, mlp: int, layers: int, heads: int) -> ReferenceConfig:
    arguments = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }
    return ReferenceConfig("llama", arguments, _HERD, device="meta")


REFERENCE_CONFIGS: dict[str, ReferenceConfig] = {
    "llama-512x8": ReferenceConfig(
        "llama",
        {
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "max_position_embeddings": 1024,
        },
        "gaudicc's own reference workload on CPU (58.5 M parameters)",
    ),
    "llama-3-8b": _llama3(4096, 14336, 32, 32),
    "llama-3-70b": _llama3(8192, 28672, 80, 64),
    "llama-405b": _llama3(16384, 53248, 126, 128),
}
