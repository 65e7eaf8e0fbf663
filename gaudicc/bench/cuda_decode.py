"""`gaudicc bench cuda`, second half: decode steps of a language model, one after the other, without a read of the host."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gaudicc.bench.turns import Turn, timed
from gaudicc.cli.options_cuda import BenchCudaOptions
from gaudicc.cli.output import say
from gaudicc.lm import CompiledLM, compile_lm
from gaudicc.models.transformers_models import build

STEPS = 32
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Decode:
    """What one contender did.

    Attributes:
        compile_s: until the first token of the first decode step, a prefill included, seconds.
        step: the median of one step.
    """

    compile_s: float
    step: Turn


class Contender(Protocol):
    """Decodes greedily at batch 1."""

    def prepare(self) -> Work:
        """Reads a prompt again; what it returns gives `STEPS` tokens more."""
        ...


def llama(options: BenchCudaOptions, dtype: torch.dtype) -> Any:
    """A Llama with random weights and grouped heads."""
    width = options.width
    heads: dict[str, Any] = {
        "num_attention_heads": width // 64,
        "num_key_value_heads": max(width // 256, 1),
        "head_dim": 64,
    }
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "vocab_size": 8192, **heads}
    made: Any = build(
        "llama", task="causal", layers=options.layers, dtype=dtype, **sizes, max_position_embeddings=4 * options.context
    )
    made.generation_config.eos_token_id = None
    return made.to(options.device)


def prompt_of(options: BenchCudaOptions) -> Tensor:
    """int64 `[1, tokens]`, so that the last of `STEPS` new tokens reads `context`."""
    return 3 + torch.arange(options.context - STEPS, device=options.device)[None] % 90


class Gaudicc:
    """compile_lm, by its public face: a chunk is `STEPS` steps and one read of the host."""

    def __init__(self, model: Any, options: BenchCudaOptions) -> None:
        self.lm: CompiledLM = compile_lm(
            model, max_batch=1, max_context=options.context, chunk=STEPS, device=options.device
        )
        self._prompt = prompt_of(options)[0].tolist()

    def prepare(self) -> Work:
        """See `Contender.prepare`."""
        request = self.lm.submit(self._prompt[: -STEPS - 1], max_new_tokens=2 * STEPS + 1)
        self.lm.step()  # the prompt and a first chunk
        assert len(request.tokens) == STEPS + 1, request.error

        def work() -> None:
            self.lm.step()
            assert len(request.tokens) == 2 * STEPS + 1, request.error

        return work


class Eager:
    """transformers with its growing cache; tokens stay on the device."""

    def __init__(self, model: Any, options: BenchCudaOptions) -> None:
        self._model, self._prompt = model, prompt_of(options)

    def prepare(self) -> Work:
        """See `Contender.prepare`."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        first = self._model(self._prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)

        def work() -> None:
            token = first
            for _ in range(STEPS):
                token = self._model(token, past_key_values=cache, use_cache=True).logits.argmax(-1)

        return work


class Compiler:
    """torch.compile(mode="reduce-overhead") of the decode step over transformers' static cache; an eager prefill."""

    def __init__(self, model: Any, options: BenchCudaOptions) -> None:
        from transformers import StaticCache

        self._model, self._prompt = model, prompt_of(options)
        self._fast = torch.compile(model, mode="reduce-overhead")
        self._cache = StaticCache(config=model.config, max_cache_len=options.context)

    def prepare(self) -> Work:
        """See `Contender.prepare`."""
        self._cache.reset()
        given = {"past_key_values": self._cache, "use_cache": True}
        first = self._model(self._prompt, **given, logits_to_keep=1).logits.argmax(-1)
        position = torch.tensor([[self._prompt.shape[1]]], device=first.device)

        def work() -> None:
            token = first
            for _ in range(STEPS):
                torch.compiler.cudagraph_mark_step_begin()
                token = self._fast(token, position_ids=position, **given).logits.argmax(-1)
                position.add_(1)

        return work


def measure_decode(options: BenchCudaOptions) -> dict[str, Decode]:
    """All contenders on the same weights, taking turns."""
    model = llama(options, torch.bfloat16 if options.device == "cuda" else torch.float32)
    known: dict[str, Callable[[Any, BenchCudaOptions], Contender]] = {"eager": Eager, "compile": Compiler}
    makers: dict[str, Callable[[Any, BenchCudaOptions], Contender]] = {"gaudicc": Gaudicc}
    makers |= {name: known[name] for name in options.peers}
    made: dict[str, Contender] = {}
    compiling: dict[str, Turn] = {}
    for name, maker in makers.items():
        say(f"{name}: first decode steps")

        def first_steps(name: str = name, maker: Callable[[Any, BenchCudaOptions], Contender] = maker) -> None:
            made[name] = maker(model, options)
            waiting(made[name].prepare())()

        compiling[name] = timed(first_steps)
    turns: dict[str, list[Turn]] = {name: [] for name in made}
    for number in range(options.rounds + 2):
        for name, contender in made.items():
            work = contender.prepare()
            wait()
            turn = timed(waiting(work))
            if number >= 2:  # compilers of shapes need a second step
                turns[name].append(turn)
    return {
        name: Decode(
            compiling[name].wall_s,
            Turn(
                statistics.median(turn.wall_s for turn in all_) / STEPS,
                statistics.median(turn.cpu_s for turn in all_) / STEPS,
            ),
        )
        for name, all_ in turns.items()
    }


def measure_agreement(options: BenchCudaOptions) -> tuple[int, int]:
    """How many greedy tokens in float32 are those of transformers' own `generate`, up to the first other one.

    Returns:
        Tokens that agree, and tokens compared.
    """
    model, prompt = llama(options, torch.float32), prompt_of(options)[:, :-STEPS]
    lm = compile_lm(model, max_batch=1, max_context=options.context, device=options.device)
    mine = lm.generate(prompt, max_new_tokens=STEPS)
    theirs = model.generate(prompt, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    same = (mine == theirs)[0, -STEPS:].long().cumprod(0).sum()
    return int(same), STEPS


def waiting(work: Work) -> Work:
    """`work`, and the wait until the GPU has done it."""

    def run() -> None:
        work()
        wait()

    return run


def wait() -> None:
    """Until the GPU has done what was launched."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
