"""Peers that run an exported model: onnxruntime and OpenVINO, prefill and decode each one graph of dynamic length.

As their users run them: keys and values of the past go in, the grown ones come out (the form of the `optimum` exports), f32,
as many threads as torch has. Decode hands the same arrays over every time. The exports are torch's own,
`torch.onnx.export(dynamo=True)` and `torch.export`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gaudicc.bench.turns import Work
from gaudicc.cli.options_lm import BenchLmOptions

Arrays = list[np.ndarray[Any, Any]]


Run = Callable[[Arrays], object]


def prompt(length: int) -> Tensor:
    """Ids of a prompt, int64 `[1, length]`."""
    return 3 + torch.arange(length)[None] % 90


class _Grown(nn.Module):
    """One forward whose cache is plain tensors: those of the past, key and value of each layer, and the grown ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        cache = _cache(self.model.config, past)
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return (logits, *cache.grown)


def _cache(config: Any, past: list[Tensor]) -> Any:
    """A growing cache of transformers with these tensors in it; `grown` collects what its updates give."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=config)
    length = past[0].shape[2] if past else 0
    cache.grown = []

    def update(key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        pair = [key, value]
        if past:
            pair = [torch.cat([past[2 * layer + i], pair[i]], dim=2) for i in (0, 1)]
        cache.grown += pair
        return pair[0], pair[1]

    cache.update = update
    cache.get_seq_length = lambda layer_idx=0: length
    cache.get_mask_sizes = lambda query_length, layer_idx=0: (length + query_length, 0)
    return cache


class _Exported:
    """What both have in common: one graph for prompts of any length, one for a token after any past."""

    packages: tuple[str, ...]

    def __init__(self, model: Any, options: BenchLmOptions) -> None:
        self._model, self._options = model, options

    @classmethod
    def installed(cls) -> bool:
        """Whether its packages are here."""
        return all(find_spec(package) for package in cls.packages)

    def compile(self, module: nn.Module, ids: Tensor, past: list[Tensor], dims: dict[str, Any]) -> Run:
        """Exports and compiles."""
        raise NotImplementedError

    @cached_property
    def _prefill(self) -> Run:
        length = torch.export.Dim("length", min=2, max=2 * self._options.context)
        return self._compiled(prompt(8), [], {"ids": {1: length}, "past": []})

    def decode(self, context: int) -> Work:
        """See `Contender.decode`."""
        config = self._model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        pairs = 2 * config.num_hidden_layers
        past = [torch.randn(1, config.num_key_value_heads, context - 1, head) for _ in range(pairs)]
        length = torch.export.Dim("length", min=2, max=2 * self._options.context)
        token = torch.ones(1, 1, dtype=torch.int64)
        run = self._compiled(token, past, {"ids": None, "past": [{2: length}] * pairs})
        inputs = [token.numpy(), *(tensor.numpy() for tensor in past)]
        return lambda: run(inputs)

    def prefill_step(self, length: int) -> Work:
        """See `Contender.prefill_step`."""
        inputs = [prompt(length).numpy()]
        return lambda: self._prefill(inputs)

    def _compiled(self, ids: Tensor, past: list[Tensor], dims: dict[str, Any]) -> Run:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, to their own users
            return self.compile(_Grown(self._model), ids, past, dims)


class OnnxRuntime(_Exported):
    """`torch.onnx.export(dynamo=True)`, then onnxruntime with its default optimisations."""

    name = "onnxruntime"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def compile(self, module: nn.Module, ids: Tensor, past: list[Tensor], dims: dict[str, Any]) -> Run:
        """Exports and compiles."""
        runtime = import_module("onnxruntime")
        program = torch.onnx.export(module, (ids, past), dynamic_shapes=dims, dynamo=True, verbose=False)
        if program is None:
            raise RuntimeError("torch.onnx.export gave no program")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(program.model_proto.SerializeToString(), options)
        names = [given.name for given in session.get_inputs()]
        return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


class OpenVino(_Exported):
    """`torch.export`, converted by OpenVINO; latency is what it is asked for."""

    name = "openvino"
    packages = ("openvino",)

    def compile(self, module: nn.Module, ids: Tensor, past: list[Tensor], dims: dict[str, Any]) -> Run:
        """Exports and compiles."""
        openvino = import_module("openvino")
        program = torch.export.export(module, (ids, past), dynamic_shapes=dims).run_decompositions({})
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.compile_model(openvino.convert_model(program), "CPU", settings)
        request = compiled.create_infer_request()
        return lambda inputs: request.infer(inputs, share_inputs=True, share_outputs=True)
