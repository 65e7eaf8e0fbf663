"""Buckets: the arithmetic used on every call, and the planner that chooses them for given traffic.

Importing this package loads neither numpy nor torch; the planner does (`gaudicc.buckets.planner`).
"""

from gaudicc.buckets.bucket import Bucket, BucketSet, Cost, product_of_sizes
from gaudicc.buckets.strategies import BucketForm, Buckets, expand, parse_buckets

__all__ = ["Bucket", "BucketForm", "BucketSet", "Buckets", "Cost", "expand", "parse_buckets", "product_of_sizes"]
