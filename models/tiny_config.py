"""Before the flow: shrinks the default config of any transformers family to a model of a few hundred thousand weights.

A family's config class has hundreds of spellings for a few ideas (`hidden_size`, `d_model`, `n_embd`). `_SIZES` lists
the spellings by the size they get; the sizes fit each other (heads x head width = model width, and so on). What kinds
of layers a family mixes is kept: the shrunk model has at least one layer of each kind.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

__all__ = ["VOCAB", "tiny_config"]

VOCAB = 128  # ids below 90 are ordinary tokens: special ids are moved to 90 and above

_LAYER_COUNTS = frozenset(
    """num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers
    encoder_num_layers decoder_num_layers encoder_num_hidden_layers decoder_num_hidden_layers depth""".split()  # noqa: SIM905
)
_KV_HEADS = frozenset(
    """num_key_value_heads num_kv_heads global_num_key_value_heads num_global_key_value_heads
    swa_num_key_value_heads""".split()  # noqa: SIM905
)
_SIZES: dict[str, int] = {
    name: size
    for size, names in (
        # widths of the model and of what hangs off it
        (
            64,
            """hidden_size d_model n_embd model_dim embed_dim embedding_size word_embed_proj_dim out_hidden_size
            encoder_hidden_size decoder_hidden_size hidden_size_global attention_hidden_size vision_output_dim
            lru_width dim emb_dim audio_hidden_size""",
        ),
        (
            128,
            """intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner ffn_hidden_size mlp_dim
            dense_intermediate_size mamba_d_ssm hidden_dim dff dim_ff""",
        ),
        (64, "shared_intermediate_size"),
        (
            32,
            """moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size moe_latent_size
            moe_shared_expert_intermediate_size projection_dim""",
        ),
        # attention
        (4, "num_attention_heads n_head num_heads n_heads encoder_attention_heads decoder_attention_heads"),
        (2, "num_attention_groups multi_query_group_num linear_num_key_heads"),
        (4, "linear_num_value_heads"),
        (
            16,
            """head_dim global_head_dim swa_head_dim d_kv attention_head_dim kv_channels rotary_dim
            linear_key_head_dim linear_value_head_dim""",
        ),
        (32, "q_lora_rank kv_lora_rank qk_head_dim"),
        (16, "qk_rope_head_dim qk_nope_head_dim v_head_dim o_lora_rank"),
        (2, "o_groups"),
        (
            16,
            "index_head_dim index_n_heads",
        ),  # with few heads, many keys have a score of 0, and which are chosen is open
        (8, "index_topk sliding_window chunk_size attention_chunk_size mamba_chunk_size"),
        (16, "attention_window_size"),
        # mixtures of experts
        (4, "num_experts num_local_experts n_routed_experts num_routed_experts moe_num_experts"),
        (2, "num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts zero_expert_num"),
        (
            1,
            """n_shared_experts num_shared_experts moe_num_shared_experts n_group n_groups num_group topk_group
            num_expert_group first_k_dense_replace moe_layer_start_index""",
        ),
        # state spaces and hybrids
        (8, "state_size mamba_n_heads mamba_num_heads mamba_dt_rank time_step_rank laurel_rank"),
        (16, "mamba_d_state ssm_state_size mamba_head_dim mamba_d_head hidden_size_per_layer_input"),
        (4, "mamba_d_conv conv_kernel"),
        (1, "mamba_n_groups attn_layer_offset expert_layer_offset prelude_num_hidden_layers"),
        (2, "attn_layer_period expert_layer_period num_memory_blocks"),
        (0, "num_kv_shared_layers num_nextn_predict_layers"),
        # tokens, positions, pictures
        (VOCAB, "vocab_size text_vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab"),
        (VOCAB, "n_words src_vocab_size tgt_vocab_size entity_vocab_size pronunciation_vocab_size shape_vocab_size"),
        (256, "max_position_embeddings n_positions n_ctx max_source_positions max_target_positions"),
        (4, "num_image_tokens"),
        (32, "image_size"),
    )
    for name in names.split()
}
# Sizes that some families leave None, and cannot do without or would derive from unshrunk ones.
_SIZES_IF_NONE = {
    name: _SIZES[name]
    for name in """head_dim attention_head_dim num_experts n_routed_experts num_experts_per_tok moe_topk
        n_shared_experts n_group topk_group""".split()  # noqa: SIM905
} | {"num_key_value_heads": 4}
# What a family needs besides, and no rule gives. A tuple is repeated over the layers.
_FAMILY_NEEDS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}},
    "esm": {"vocab_size": VOCAB, "pad_token_id": 0, "mask_token_id": 90},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "d_head": 16, "d_inner": 128},
    "granitemoehybrid": {"layer_types": ("linear_attention", "full_attention")},
    "lfm2_moe": {"layer_types": ("conv", "full_attention")},
    "mamba2": {"num_heads": 8},
    "perceiver": {"num_latents": 16, "d_latents": 64, "num_self_attends_per_block": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "attn_layers": ("local", "lsh"), "axial_pos_embds": False},
    "vibevoice_asr": {
        f"{kind}_tokenizer_encoder_config": {
            "model_type": "vibevoice_acoustic_tokenizer_encoder",
            "num_filters": 4,
            "depths": [1] * 7,
            "hidden_size": size,
        }
        for kind, size in (("acoustic", 64), ("semantic", 128))
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ("hybrid",), "attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "zaya": {"num_experts_per_tok": 1},
}
_TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BOOKKEEPING = frozenset(("model_type", "transformers_version", "architectures", "dtype", "quantization_config"))


class _Reach(Enum):
    """How much is shrunk: families whose sizes constrain each other in their own way keep more of their defaults."""

    ALL = "sizes, absent sizes and the layer pattern"
    SIZES = "sizes only"
    COUNTS = "numbers of layers, experts and words"


def tiny_config(config_class: type, layers: int, overrides: dict[str, Any], accept: Callable[[Any], None]) -> Any:
    """Shrinks the default config of a family as far as its model takes it.

    Args:
        config_class: a transformers config class.
        layers: how many layers; more if the family mixes more kinds of layers than that (at most four).
        overrides: arguments of the config class that win over what was shrunk.
        accept: raises if no model can be built from the config it is given.

    Raises:
        Exception: what the config class or `accept` raised on the smallest config, if it refused the larger ones too.
    """
    needs = {
        name: [value[i % len(value)] for i in range(layers)] if isinstance(value, tuple) else value
        for name, value in _FAMILY_NEEDS.get(config_class.model_type, {}).items()  # type: ignore[attr-defined]
    }
    defaults = config_class().to_dict()
    refusals: list[Exception] = []
    for reach in _Reach:
        try:
            config = config_class(**(_shrink(defaults, config_class, layers, reach) | needs | overrides))
            accept(config)
        except Exception as refusal:
            refusals.append(refusal)
        else:
            return config
    raise refusals[0]


def _shrink(values: dict[str, Any], config_class: type | None, layers: int, reach: _Reach) -> dict[str, Any]:
    """The arguments of one (sub)config that differ from its defaults."""
    depth = next((values[name] for name in _LAYER_COUNTS if isinstance(values.get(name), int)), 0)
    patterns = {
        name: value for name, value in values.items() if isinstance(value, list) and len(value) == depth and depth > 2
    }
    kept = list(range(layers))
    if patterns and reach is not _Reach.SIZES:
        kept = _one_of_each_kind(list(zip(*patterns.values(), strict=True)), layers)
    shrunk: dict[str, Any] = {name: [value[i] for i in kept] for name, value in patterns.items()}
    subconfigs = getattr(config_class, "sub_configs", None) or {}
    for name, value in values.items():
        if name in _BOOKKEEPING or name in shrunk or isinstance(value, bool):
            continue
        if isinstance(value, dict) and (name in subconfigs or name.endswith("_config")):
            inner = {key: item for key, item in value.items() if key == "model_type"}
            shrunk[name] = inner | _shrink(value, _config_class(subconfigs.get(name)), layers, reach)
        elif isinstance(value, dict) and name in ("rope_parameters", "rope_scaling") and reach is not _Reach.COUNTS:
            shrunk[name] = _shrink_rope(value)
        elif (new := _shrink_value(name, value, len(kept), _heads(values), reach)) is not None:
            shrunk[name] = new
    return shrunk


def _shrink_value(name: str, value: Any, layers: int, heads: int | None, reach: _Reach) -> int | None:
    """The new value of one field, or None to keep its default."""
    counts_only = reach is _Reach.COUNTS
    if name in _LAYER_COUNTS:
        return layers if isinstance(value, int) else None
    if "token" in name and name.endswith(("_id", "_index")):
        too_big = isinstance(value, list) or (isinstance(value, int) and value >= 90)
        return _TOKEN_IDS.get(name, 90 + sum(map(ord, name)) % 9) if too_big else None
    if isinstance(value, int) and name in _KV_HEADS and not counts_only:
        return 4 if value == heads else min(value, 2)
    if isinstance(value, int) and name in _SIZES:
        return _SIZES[name] if not counts_only or "expert" in name or "vocab" in name else None
    return _SIZES_IF_NONE.get(name) if value is None and reach is _Reach.ALL else None


def _heads(values: dict[str, Any]) -> int | None:
    names = ("num_attention_heads", "n_head", "num_heads", "n_heads")
    return next((values[name] for name in names if isinstance(values.get(name), int)), None)


def _one_of_each_kind(kinds: list[tuple[Any, ...]], layers: int) -> list[int]:
    """Indices of the layers to keep: the first ones, unless those miss a kind that the whole model has."""
    labels = [repr(kind) for kind in kinds]
    first = [i % len(labels) for i in range(layers)]
    wanted = sorted(labels.index(label) for label in dict.fromkeys(labels))[:4]
    if {labels[i] for i in wanted} <= {labels[i] for i in first}:
        return first
    extra = [i for i in first if i not in wanted][: max(0, layers - len(wanted))]
    return sorted(wanted + extra)


def _shrink_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Cuts the per-frequency lists of rotary scaling to the shrunk head width (16: eight frequencies)."""
    cut: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            cut[name] = _shrink_rope(value)
        elif name == "mrope_section":
            cut[name] = [2, 3, 3]
        elif name in ("short_factor", "long_factor") and isinstance(value, list):
            cut[name] = value[:8]
        else:
            cut[name] = value
    return cut


def _config_class(candidate: object) -> type | None:
    return candidate if isinstance(candidate, type) and hasattr(candidate, "sub_configs") else None
