"""LM inference, fifth step: one entry point of a model, captured once with symbolic sizes, recorded per bucket on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from gaudicc.buckets import Bucket
from gaudicc.capture import capture
from gaudicc.compiler import for_bucket, split_pipeline
from gaudicc.lower import lower
from gaudicc.passes import STATIC, SYMBOLIC
from gaudicc.pipeline import Pipeline
from gaudicc.program import Program
from gaudicc.runtime.device import Device
from gaudicc.runtime.runner import Counters, Runner
from gaudicc.targets import Target
from gaudicc.verify import Level
