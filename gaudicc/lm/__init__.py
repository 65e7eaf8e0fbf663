"""LM inference: prefill and decode as recorded graphs over one shared state. `compile.py` is the front door."""

from gaudicc.lm.compile import compile_lm
from gaudicc.lm.compiled import CompiledLM, Generation
from gaudicc.lm.request import GenerationOptions, Request
from gaudicc.lm.scheduler import LmStats
from gaudicc.lm.session import Session

__all__ = ["CompiledLM", "Generation", "GenerationOptions", "LmStats", "Request", "Session", "compile_lm"]
