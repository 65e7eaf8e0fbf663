"""`habana_frameworks.torch.dynamo.compile_backend.backends`: the backend as a function, for those who wrap it."""

from gaudicc.emulator.backend import hpu_backend

__all__ = ["hpu_backend"]
