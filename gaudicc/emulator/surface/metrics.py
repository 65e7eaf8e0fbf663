"""`habana_frameworks.torch.hpu.metrics`."""

from gaudicc.emulator.dumps import MetricDumpFormat, MetricDumpTrigger
from gaudicc.emulator.metrics import Metric, MetricNotFound, metric_global, metric_localcontext, metrics_dump

__all__ = [
    "Metric",
    "MetricDumpFormat",
    "MetricDumpTrigger",
    "MetricNotFound",
    "metric_global",
    "metric_localcontext",
    "metrics_dump",
]
