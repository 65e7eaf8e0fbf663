"""Who is measured: gaudicc, eager transformers, Inductor, onnxruntime, OpenVINO; each gives the same steps to time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

import torch

from gaudicc.bench.lm_exported import OnnxRuntime, OpenVino, prompt
from gaudicc.bench.turns import Work, timed
from gaudicc.cli.options_lm import BenchLmOptions
from gaudicc.lm import CompiledLM, GenerationOptions, Request, compile_lm

_REPEATS = 500


class Contender(Protocol):
    """Something that runs the model.

    Attributes:
        name: in the table.
    """

    name: str

    def decode(self, context: int) -> Work:
        """One token more, the cache holding `context` tokens with it."""
        ...

    def prefill_step(self, length: int) -> Work:
        """Logits of the last token of a prompt, its keys and values kept."""
        ...


def contenders(model: Any, peers: Sequence[str], options: BenchLmOptions) -> list[Any]:
    """The peers asked for, behind gaudicc, on the same weights."""
    known = {"native": Native, "eager": Eager, "inductor": Inductor, "onnxruntime": OnnxRuntime, "openvino": OpenVino}
    return [Gaudicc(model, options), *(known[peer](model, options) for peer in peers)]


def installed(peer: str) -> bool:
    """Whether a peer can run here: our own kernels need a C compiler, Inductor one for C++, the others their packages."""
    needs: dict[str, Callable[[], bool]] = {
        "native": partial(_has, "cc", "gcc", "clang"),
        "inductor": partial(_has, "g++", "clang++", "c++"),
        "onnxruntime": OnnxRuntime.installed,
        "openvino": OpenVino.installed,
    }
    return peer not in needs or needs[peer]()


def _has(*compilers: str) -> bool:
    return any(map(shutil.which, compilers))


class Gaudicc:
    """Recorded graphs, through the parts that `CompiledLM` runs on."""

    name = "gaudicc"

    def __init__(self, model: Any, options: BenchLmOptions) -> None:
        self._model, self._options = model, options

    @cached_property
    def lm(self) -> CompiledLM:
        """Compiled on first use."""
        return compile_lm(self._model, max_batch=1, max_context=2 * self._options.context)

    def decode(self, context: int) -> Work:
        """See `Contender.decode`."""
        request = self.lm.submit(prompt(context - 1)[0], max_new_tokens=1 + self._options.context // 2)
        self.lm.step()
        step = self.lm._graphs.decode(1, context, sampled=False)
        state = self.lm._graphs.state

        def run() -> None:
            state.position[0] = context - 1  # the same position every time
            step()

        request.cancel()
        return run

    def prefill_step(self, length: int) -> Work:
        """See `Contender.prefill_step`."""
        request = Request(tuple(prompt(length)[0].tolist()), GenerationOptions(max_new_tokens=1), slot=0)
        return lambda: self.lm._graphs.prefill([request], sampled=False)

    def overhead_us(self) -> float:
        """What one replay costs besides the function that makes its calls, microseconds: the best of many."""
        step = self.lm._graphs.decode(1, self._options.context, sampled=False)
        entry = self.lm._graphs.entry("decode", False)
        recording: Any = entry.runner(entry.buckets[-1])._only
        calls = recording._run
        recording._run = lambda *inputs: inputs
        try:
            return min(timed(step).wall_s for _ in range(_REPEATS)) * 1e6
        finally:
            recording._run = calls


class Native(Gaudicc):
    """With `native=True`: kernels in C for what ATen has several calls for."""

    name = "gaudicc, native"

    @cached_property
    def lm(self) -> CompiledLM:
        """Compiled on first use, and so are the kernels if this machine never did."""
        return compile_lm(self._model, max_batch=1, max_context=2 * self._options.context, native=True)


class Eager:
    """transformers as it is, under inference_mode, with its default attention and growing cache."""

    name = "eager"

    def __init__(self, model: Any, options: BenchLmOptions) -> None:
        self._model = model

    def decode(self, context: int) -> Work:
        """See `Contender.decode`."""
        from transformers import DynamicCache

        cache, token = DynamicCache(config=self._model.config), torch.ones(1, 1, dtype=torch.int64)
        with torch.inference_mode():
            self._model(prompt(context - 1), past_key_values=cache, use_cache=True, logits_to_keep=1)

        def run() -> None:
            with torch.inference_mode():
                self._model(token, past_key_values=cache, use_cache=True)
                cache.crop(-1)

        return run

    def prefill_step(self, length: int) -> Work:
        """See `Contender.prefill_step`."""
        ids = prompt(length)

        def run() -> None:
            with torch.inference_mode():
                self._model(ids, use_cache=True, logits_to_keep=1)

        return run


class Inductor:
    """`torch.compile` with its compile cache empty: one graph of dynamic length for prefill, the static cache for decode."""

    name = "torch.compile"

    def __init__(self, model: Any, options: BenchLmOptions) -> None:
        import torch._inductor.config as inductor

        self._model = model
        inductor.fx_graph_cache = False
        self._prefill = torch.compile(model, dynamic=True)

    def decode(self, context: int) -> Work:
        """See `Contender.decode`."""
        from transformers import StaticCache

        compiled = torch.compile(self._model)
        cache = StaticCache(config=self._model.config, max_cache_len=context)
        token, position = torch.ones(1, 1, dtype=torch.int64), torch.tensor([[context - 1]])
        with torch.inference_mode():
            self._model(prompt(context - 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
        before = [layer.cumulative_length.clone() for layer in cache.layers]

        def run() -> None:
            with torch.inference_mode():
                compiled(token, position_ids=position, past_key_values=cache, use_cache=True)
                for layer, length in zip(cache.layers, before, strict=True):
                    layer.cumulative_length.copy_(length)

        return run

    def prefill_step(self, length: int) -> Work:
        """See `Contender.prefill_step`."""
        ids = prompt(length)

        def run() -> None:
            with torch.inference_mode():
                self._prefill(ids, use_cache=True, logits_to_keep=1)

        return run
