"""LM inference: what a model's own generation config says of a request that says nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gaudicc.errors import UnsupportedInputError, Where

_TAKEN = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")

# Fields of transformers' GenerationConfig that change which tokens come out -> values that mean "off".
_CHANGING: dict[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "guidance_scale": (None, 1.0),
    "typical_p": (None, 1.0),
    "top_h": (None,),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "penalty_alpha": (None,),
    "dola_layers": (None,),
    "bad_words_ids": (None,),
    "force_words_ids": (None,),
    "constraints": (None,),
    "sequence_bias": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "stop_strings": (None,),
    "max_time": (None,),
    "watermarking_config": (None,),
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a request names nothing else.

    Attributes:
        options: fields of `GenerationOptions`.
        stop: ids that end a request.
        pad: fills rows that ended before others; None: 0.
    """

    options: dict[str, Any] = field(default_factory=dict)
    stop: tuple[int, ...] = ()
    pad: int | None = None


def defaults_of(model: Any) -> Defaults:
    """Reads `model.generation_config`, if there is one.

    Raises:
        UnsupportedInputError: it asks for something that changes the tokens and is not compiled, as beams.
    """
    config: Any = getattr(model, "generation_config", None)
    if config is None:
        return Defaults()
    for name, off in _CHANGING.items():
        value = getattr(config, name, None)
        if value not in off:
            raise UnsupportedInputError(
                f"the model's generation_config asks for {name}={value!r}, which is not compiled",
                where=Where(stage="compile_lm"),
                hint=f"set model.generation_config.{name} = None if the tokens may come without it, or use model.generate(..., "
                'cache_implementation="static", compile_config=CompileConfig(backend="gaudicc"))',
            )
    ends = config.eos_token_id
    options = {name: value for name in _TAKEN if (value := getattr(config, name, None)) is not None}
    if options.get("top_k") == 0:  # transformers' way to say: among all
        del options["top_k"]
    stop = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
    return Defaults(options, stop, config.pad_token_id)
